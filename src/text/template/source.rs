//! A template's source as minijinja is to read it: what HuggingFace's Jinja reads in another way is written anew.

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
            _ => out.push_str(tag),
        }
    }
    out + rest
}

/// Behind the mark that ends a tag, not counting those in its strings.
fn end_of_code(tag: &str, mark: &str) -> Option<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (at, byte) in tag.bytes().enumerate().skip(2) {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if byte == b'\\' => escaped = true,
            Some(open) if byte == open => quote = None,
            Some(_) => {}
            None if byte == b'"' || byte == b'\'' => quote = Some(byte),
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
            "{% for x in y %}{%",
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
    }
}
