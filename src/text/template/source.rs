//! A template's source as minijinja is to read it: what HuggingFace's Jinja reads in another way is written anew, and
//! what makes values of others gets its bound.

use super::bounded::NAME;
use super::growth;

/// `{% generation %}` marks an assistant's answer for training; HuggingFace's renderer knows it, Jinja does not. It
/// becomes a block of its own scope that always renders. And Jinja keeps the line's end behind `{% raw %}`.
pub fn rewritten(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find('{') {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let end = match tag.as_bytes().get(1) {
            Some(b'#') => tag.find("#}").map(|at| at + 2),
            Some(b'{') => end_of_code(tag, "}}"),
            Some(b'%') => end_of_code(tag, "%}"),
            _ => Some(1),
        };
        // What has no end is for minijinja to refuse.
        let Some(end) = end else {
            out.push_str(tag);
            return out;
        };
        let (tag, after) = tag.split_at(end);
        rest = after;
        match tag.strip_prefix("{%").map(|t| t.trim_end_matches("%}").trim_matches(['-', '+']).trim()) {
            Some("generation") => out.push_str(&tag.replace("generation", "with")),
            Some("endgeneration") => out.push_str(&tag.replace("endgeneration", "endwith")),
            Some("raw") => {
                out.push_str(tag);
                out.push_str(if rest.starts_with('\n') && !tag.ends_with("-%}") { "\n" } else { "" });
                let end = end_of_raw(rest);
                out.push_str(&rest[..end]);
                rest = &rest[end..];
            }
            _ => bounded(tag, &mut out),
        }
    }
    out + rest
}

/// The tag with its bounds. Where something repeats, each turn asks for one: a template has its time, too.
fn bounded(tag: &str, out: &mut String) {
    let is_statement = tag.starts_with("{%");
    if !is_statement && !tag.starts_with("{{") {
        return out.push_str(tag);
    }
    let mark = |byte: Option<&u8>| usize::from(byte.is_some_and(|byte| matches!(byte, b'-' | b'+')));
    let bytes = tag.as_bytes();
    let begin = 2 + mark(bytes.get(2));
    let end = tag.len() - 2;
    let end = (end - mark(bytes.get(end.wrapping_sub(1)))).max(begin);
    let Some(code) = tag.get(begin..end) else { return out.push_str(tag) };
    let code = growth::rewritten(code, is_statement);
    out.push_str(&tag[..begin]);
    out.push_str(code.as_deref().unwrap_or(&tag[begin..end]));
    out.push_str(&tag[end..]);
    let word = tag[begin..end].split_whitespace().next();
    if is_statement && matches!(word, Some("for" | "macro")) {
        let (open, close) = (&tag[end..tag.len() - 2], &tag[end..]);
        out.push_str(&format!("{{%{open} if 0|{NAME} %}}{{%{open} endif {close}"));
    }
}

/// Behind the mark that ends a tag, not counting those in its strings and between its brackets.
fn end_of_code(tag: &str, mark: &str) -> Option<usize> {
    let mut quote = None;
    let mut escaped = false;
    let mut open = 0;
    for (at, byte) in tag.bytes().enumerate().skip(2) {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if byte == b'\\' => escaped = true,
            Some(open) if byte == open => quote = None,
            Some(_) => {}
            None if byte == b'"' || byte == b'\'' => quote = Some(byte),
            None if matches!(byte, b'(' | b'[' | b'{') => open += 1,
            None if open > 0 => open -= usize::from(matches!(byte, b')' | b']' | b'}')),
            None if tag.as_bytes()[at..].starts_with(mark.as_bytes()) => return Some(at + mark.len()),
            None => {}
        }
    }
    None
}

/// Where `{% endraw %}` begins.
fn end_of_raw(text: &str) -> usize {
    let is_end = |at: &usize| {
        let inside = text[at + 2..].trim_start_matches(['-', '+']).trim_start();
        inside.starts_with("endraw")
    };
    text.match_indices("{%").map(|(at, _)| at).find(is_end).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tags_are_rewritten() {
        for same in [
            "{% if x in y %}{%",
            "{{ '{% generation %}' }}",
            "{# {% generation %} #}",
            "{% raw %}{% generation %}{% endraw %}",
            "{{ \"\\\"{% generation %}\" }}{",
            "{{ '{% generation %}",
        ] {
            assert_eq!(rewritten(same), same);
        }
        assert_eq!(rewritten("{%- generation +%}é{% endgeneration%}"), "{%- with +%}é{% endwith%}");
        assert_eq!(rewritten("{% raw %}\n{{"), "{% raw %}\n\n{{");
        let turn = "{%- for x in y +%}{%+ if 0|_bounded %}{%+ endif +%}\nz";
        assert_eq!(rewritten("{%- for x in y +%}\nz"), turn);
        assert_eq!(rewritten("{{ {'a': {}} ~ [a] }}"), "{{ {'a': {}} ~ (([a])|_bounded) }}");
        assert_eq!(rewritten("{{-a+b-}}{{"), "{{-((a+b)|_bounded)-}}{{");
    }
}
