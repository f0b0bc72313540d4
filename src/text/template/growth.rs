//! Where a template makes values of others: its lists, dictionaries, sums, products and assignments. minijinja has no
//! limit on how they hold one another, and makes nothing of a sum of lists until it is read, unpaid. So each of them is
//! written anew with [`super::bounded`] behind it. What is not understood here stays as it is, for minijinja to refuse.

use super::bounded::{NAME, NAME_OF_INDEX, NAME_OF_MEMBER};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Word,
    /// A number or a text.
    Literal,
    Open,
    Close,
    Operator,
}

#[derive(Debug, Clone, Copy)]
struct Token<'a> {
    kind: Kind,
    text: &'a str,
    at: usize,
}

impl Token<'_> {
    fn end(&self) -> usize {
        self.at + self.text.len()
    }
}

/// Words between operands, and those that a statement begins with.
const BETWEEN: [&str; 16] = [
    "and",
    "or",
    "not",
    "in",
    "if",
    "else",
    "elif",
    "set",
    "for",
    "with",
    "do",
    "recursive",
    "include",
    "import",
    "from",
    "extends",
];

/// What stands between two of these is an operand of what binds less than `+`, or than `*`.
#[derive(Default)]
struct Span {
    begin: Option<usize>,
    end: usize,
    grows: bool,
}

impl Span {
    fn take(&mut self, token: &Token) {
        self.begin.get_or_insert(token.at);
        self.end = token.end();
    }

    fn finish(&mut self, out: &mut Vec<Bound>) {
        if let (Some(begin), true) = (self.begin, self.grows) {
            wrap(begin, self.end, NAME, out);
        }
        *self = Span::default();
    }
}

/// What is inside a pair of brackets.
#[derive(Default)]
struct Level {
    sum: Span,
    product: Span,
    /// Where a list, a dictionary, a tuple or a call begins that makes a value; a group in parentheses makes one when it
    /// has a comma.
    made: Option<usize>,
    needs_comma: bool,
    has_comma: bool,
    has_names: bool,
    /// Of what a value is indexed by: where its first number, or the end of a slice without one, is.
    index: Option<Index>,
}

/// What stands in brackets behind a value.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Index {
    /// From here on, and nothing of it is read yet.
    Empty(usize),
    /// Its first part has been bounded.
    Bounded,
}

impl Level {
    /// Puts the filter of indices around the first part of one; a slice that ends without any gets a 0.
    fn bound_index(&mut self, closes: bool, out: &mut Vec<Bound>) {
        let Some(Index::Empty(begin)) = self.index else { return };
        match (self.sum.begin, closes) {
            (Some(first), _) => {
                out.push(Bound { begin: first, end: self.sum.end, filter: NAME_OF_INDEX });
                self.index = Some(Index::Bounded);
            }
            (None, true) => out.push(Bound { begin, end: begin, filter: NAME_OF_INDEX }),
            (None, false) => {}
        }
    }
}

/// The filter around a part of the code.
struct Bound {
    begin: usize,
    end: usize,
    filter: &'static str,
}

fn wrap(begin: usize, end: usize, filter: &'static str, out: &mut Vec<Bound>) {
    // What is a sum as a whole is looked at once.
    out.retain(|inner| (inner.begin, inner.end) != (begin, end));
    out.push(Bound { begin, end, filter });
}

/// The code of a tag, without its marks. `is_statement` is one in `{% %}`.
pub fn rewritten(code: &str, is_statement: bool) -> Option<String> {
    let tokens = tokens(code)?;
    let first = tokens.first().filter(|_| is_statement).map_or("", |t| t.text);
    let mut bounds = Vec::new();
    let from = match first {
        "for" => tokens.iter().position(|t| t.text == "in")?,
        "set" => tokens.iter().position(|t| t.text == "=")?,
        _ => 0,
    };
    expressions(&tokens, from, &mut bounds)?;
    if first == "set" {
        let is_member = tokens[..from].iter().any(|t| t.text == ".");
        let (begin, end) = (tokens.get(from + 1)?.at, tokens.last()?.end());
        wrap(begin, end, if is_member { NAME_OF_MEMBER } else { NAME }, &mut bounds);
    }
    let close = |bound: &Bound| match bound.begin == bound.end {
        true => (bound.end, format!("((0)|{})", bound.filter)),
        false => (bound.end, format!(")|{})", bound.filter)),
    };
    let mut edits: Vec<(usize, String)> = bounds.iter().map(close).collect();
    let begins = bounds.iter().filter(|bound| bound.begin < bound.end);
    edits.extend(begins.map(|bound| (bound.begin, "((".into())));
    // Of those at one place, all open or all close, the inner ones first.
    edits.sort_by_key(|(at, _)| *at);
    let (mut out, mut done) = (String::with_capacity(code.len()), 0);
    for (at, text) in edits {
        out.push_str(&code[done..at]);
        out.push_str(&text);
        done = at;
    }
    Some(out + &code[done..])
}

fn expressions(tokens: &[Token], from: usize, out: &mut Vec<Bound>) -> Option<()> {
    let mut levels = vec![Level::default()];
    for (i, token) in tokens.iter().enumerate().skip(from) {
        let before = |by: usize| i.checked_sub(by).map(|at| &tokens[at]);
        let follows_value = before(1).is_some_and(|t| is_operand(tokens, i - 1) && t.kind != Kind::Open);
        let level = levels.last_mut()?;
        match token.kind {
            Kind::Open => {
                level.product.take(token);
                level.sum.take(token);
                let of_function = before(1).filter(|t| ["dict", "namespace"].contains(&t.text));
                let is_function = before(2).is_none_or(|t| !matches!(t.text, "." | "|"));
                levels.push(Level {
                    made: match of_function.filter(|_| is_function) {
                        Some(name) => Some(name.at),
                        None => (!follows_value).then_some(token.at),
                    },
                    needs_comma: token.text == "(" && !follows_value,
                    index: (token.text == "[" && follows_value).then_some(Index::Empty(token.end())),
                    ..Level::default()
                });
            }
            Kind::Close => {
                level.bound_index(true, out);
                level.product.finish(out);
                level.sum.finish(out);
                let closed = levels.pop()?;
                if let Some(begin) = closed.made.filter(|_| closed.has_names)
                    && (closed.has_comma || !closed.needs_comma)
                {
                    wrap(begin, token.end(), NAME, out);
                }
                let level = levels.last_mut()?;
                level.product.take(token);
                level.sum.take(token);
                level.has_names |= closed.has_names;
            }
            _ if is_operand(tokens, i) => {
                level.has_names |= token.kind == Kind::Word;
                level.product.take(token);
                level.sum.take(token);
            }
            Kind::Operator if matches!(token.text, "*" | "/" | "//" | "%" | "**") => {
                // Without a left side it passes arguments on.
                level.product.grows |= token.text == "*" && level.product.begin.is_some();
            }
            Kind::Operator if matches!(token.text, "+" | "-" | "~") && level.product.begin.is_some() => {
                level.product.finish(out);
                level.sum.grows |= token.text == "+";
            }
            // A sign.
            Kind::Operator if matches!(token.text, "+" | "-") => {
                level.product.take(token);
                level.sum.take(token);
            }
            _ => {
                if token.text == ":" {
                    level.bound_index(false, out);
                }
                level.has_comma |= token.text == ",";
                level.product.finish(out);
                level.sum.finish(out);
            }
        }
    }
    let mut level = levels.pop().filter(|_| levels.is_empty())?;
    level.product.finish(out);
    level.sum.finish(out);
    Some(())
}

/// True of a part of an operand: a name, also one that is a word elsewhere (`a.in`, `is not in`), a literal, a bracket,
/// and what holds these together.
fn is_operand(tokens: &[Token], i: usize) -> bool {
    let token = &tokens[i];
    let before = i.checked_sub(1).map_or("", |at| tokens[at].text);
    match token.kind {
        Kind::Operator => matches!(token.text, "." | "|"),
        Kind::Word if BETWEEN.contains(&token.text) => {
            let is_test = before == "is" || (before == "not" && i > 1 && tokens[i - 2].text == "is");
            matches!(before, "." | "|") || is_test
        }
        _ => true,
    }
}

/// `None` of what no template has.
fn tokens(code: &str) -> Option<Vec<Token<'_>>> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(c) = code[at..].chars().next() {
        let rest = &code[at..];
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let word = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let (kind, length) = match c {
            _ if c.is_whitespace() => {
                at += c.len_utf8();
                continue;
            }
            '"' | '\'' => (Kind::Literal, end_of_text(rest)?),
            '0'..='9' => (Kind::Literal, end_of_number(rest, word)),
            _ if is_word(c) => (Kind::Word, word),
            '(' | '[' | '{' => (Kind::Open, 1),
            ')' | ']' | '}' => (Kind::Close, 1),
            _ if ["//", "**", "==", "!=", "<=", ">="].iter().any(|two| rest.starts_with(two)) => {
                (Kind::Operator, 2)
            }
            _ => (Kind::Operator, c.len_utf8()),
        };
        tokens.push(Token { kind, text: &rest[..length], at });
        at += length;
    }
    Some(tokens)
}

fn end_of_text(rest: &str) -> Option<usize> {
    let quote = rest.as_bytes()[0];
    let mut escaped = false;
    for (at, byte) in rest.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            byte if byte == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// `1.5e-7` is one; `1.x` is not.
fn end_of_number(rest: &str, word: usize) -> usize {
    let digit = |at: usize| rest.as_bytes().get(at).is_some_and(u8::is_ascii_digit);
    let mut end = word;
    if rest[end..].starts_with('.') && digit(end + 1) {
        let more = rest[end + 1..].find(|c: char| !c.is_alphanumeric() && c != '_');
        end = more.map_or(rest.len(), |more| end + 1 + more);
    }
    let has_exponent = rest[..end].ends_with(['e', 'E']) && !rest.starts_with("0x");
    if has_exponent && rest[end..].starts_with(['+', '-']) && digit(end + 1) {
        let more = rest[end + 1..].find(|c: char| !c.is_ascii_digit() && c != '_');
        end = more.map_or(rest.len(), |more| end + 1 + more);
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_values_is_followed_by_a_bound() {
        // `<` and `>` for what is written around one, `^` for the end of an index.
        let ours = |code: &str, is_statement| {
            let ours = rewritten(code, is_statement).unwrap();
            let ours = ours.replace(")|_bounded_member)", ">>").replace(")|_bounded)", ">");
            ours.replace(")|_timely)", "^").replace("((", "<")
        };
        for (code, wants) in [
            (" a + b ", " <a + b> "),
            ("a * b + c ~ d == e - f", "<<a * b> + c ~ d> == e - f"),
            ("f(*a) and g(b=c + -1)", "f(*a) and g(b=<c + -1>)"),
            ("[1, 2] + [a][0]", "<[1, 2] + <[a]>[<0^]>"),
            ("a[b:c + 1].in | join(', ') + x", "<a[<b^:<c + 1>].in | join(', ') + x>"),
            ("(a, b) if not c is not in d + e", "<(a, b)> if not <c is not in d + e>"),
            ("c else {'k': x} not in [y - 1]", "c else <{'k': x}> not in <[y - 1]>"),
            ("dict(a=b).c + 1.5e-7 * 0xe", "<<dict(a=b)>.c + <1.5e-7 * 0xe>>"),
            ("a[:][::-1]['x'][i + 1][not b]", "a[<0^:][::<-1^][<'x'^][<i + 1>][not <b^]"),
            ("a.dict(b) ~ '+' ~ 2 ** 3", "a.dict(b) ~ '+' ~ 2 ** 3"),
        ] {
            assert_eq!(ours(code, false), wants);
        }
        for (code, wants) in [
            ("set a, b = c, d", "set a, b = <c, d>"),
            ("set a.b = c + d", "set a.b = <c + d>>"),
            ("for (k, v) in a + b if c recursive", "for (k, v) in <a + b> if c recursive"),
            ("macro m(a, b=c * 2)", "macro m(a, b=<c * 2>)"),
        ] {
            assert_eq!(ours(code, true), wants);
        }
        for other in ["'", "set x", "(", "a)"] {
            assert_eq!(rewritten(other, true), None);
        }
    }
}
