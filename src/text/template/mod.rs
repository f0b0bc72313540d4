//! What chat templates may call beside minijinja's own, and what of minijinja is not as in Jinja: HuggingFace's
//! renderer is the model.
//!
//! A template is a program from a downloaded file. minijinja pays for what its own operators make; these
//! functions pay (in fuel, 64 bytes each) before they make anything, so that none of them is a way out.

use std::time::Duration;

use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value, escape_formatter};

mod bounded;
mod dates;
mod filters;
mod growth;
mod json;
mod methods;
mod python;
pub mod source;
mod view;

pub use dates::strftime_now;

/// Values inside values that are followed.
const MAX_DEPTH: usize = 64;
/// A rendering may take; real ones take milliseconds. Its fuel does not pay for all that one step can do.
const MAX_TIME: Duration = Duration::from_secs(5);

pub fn install(environment: &mut Environment) {
    environment.set_unknown_method_callback(methods::call);
    environment.set_formatter(|out, state, value| {
        bounded::in_time(state)?;
        match value.as_str() {
            _ if !matches!(state.auto_escape(), AutoEscape::None) => {
                return escape_formatter(out, state, value);
            }
            Some(text) => out.write_str(text),
            None => out.write_str(&python::text(state, value)?),
        }
        .map_err(Error::from)
    });
    filters::install(environment);
    environment.add_filter(bounded::NAME, bounded::bounded);
    environment.add_filter(bounded::NAME_OF_MEMBER, bounded::bounded_member);
    environment.add_filter(bounded::NAME_OF_INDEX, bounded::timely);
    environment.add_filter("tojson", json::tojson);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
}

fn refused(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.to_string())
}

/// Pays for `bytes` of work or of text.
fn pay(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel(bytes as u64 / 64 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, Error> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(100_000));
        install(&mut environment);
        environment.render_str(source, minijinja::context! { tools => [1] })
    }

    #[test]
    fn json_is_as_python_writes_it() {
        for (source, json) in [
            (
                "{{ {'a': [1, 2.5, none, true], 'b<': \"x'é\\n\"} | tojson }}",
                r#"{"a": [1, 2.5, null, true], "b<": "x'é\n"}"#,
            ),
            ("{{ [1, {}] | tojson(indent=2) }}", "[\n  1,\n  {}\n]"),
            ("{{ {'a': {'b': []}} | tojson(indent=4) }}", "{\n    \"a\": {\n        \"b\": []\n    }\n}"),
            ("{{ '' | tojson(ensure_ascii=false) }}", "\"\""),
        ] {
            assert_eq!(render(source).unwrap(), json, "{source}");
        }
        assert!(render("{{ missing | tojson }}").is_err());
    }

    #[test]
    fn python_methods_do_what_templates_need() {
        for (source, text) in [
            ("{{ ' a b '.strip().replace('a', 'cc') }}", "cc b"),
            ("{{ ', '.join(['x', '1']) }}", "x, 1"),
            ("{{ '{} {}'.format('a', 2) }}", "a 2"),
            ("{{ 'a</think>b'.split('</think>')[-1] }}", "b"),
            ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}", "a1"),
            ("{{ 'abc'.startswith('ab') and not 'abc'.endswith('x') }}", "True"),
        ] {
            assert_eq!(render(source).unwrap(), text, "{source}");
        }
    }

    #[test]
    fn methods_are_no_way_around_the_budget() {
        for source in [
            // 10^12 bytes, each from operands that are affordable.
            "{% set s = 'x' * 1000000 %}{{ s.replace('x', s) | length }}",
            "{% set s = 'x' * 1000000 %}{{ s.replace('', s) | length }}",
            "{% set s = 'x' * 1000000 %}{{ s.strip('y' * 1000000 ~ 'x') | length }}",
            "{% set s = 'x' * 1000000 %}{{ s.join(range(100000)) | length }}",
            "{% set s = 'x' * 1000000 %}{{ ''.join([s] * 10000) | length }}",
            "{{ '{:1000000000}'.format('x') }}",
            "{{ '{:{}}'.format('x', 1000000000) }}",
            "{% set s = 'x' * 1000000 %}{{ ('{0}' * 10000).format(s) | length }}",
            // Values that hold one another, doubling at each step.
            "{% set ns = namespace(a=['x' * 1000]) %}{% for i in range(40) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a | tojson }}",
            "{% set ns = namespace(a=['x' * 1000]) %}{% for i in range(40) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ''.join(ns.a) }}",
            "{% set ns = namespace(a=1) %}{% for i in range(200) %}{% set ns.a = [ns.a] %}{% endfor %}{{ ns.a | tojson }}",
            "{% set ns = namespace(a=['x' * 1000]) %}{% for i in range(40) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a }}",
            "{% set ns = namespace(a=['x' * 1000]) %}{% for i in range(40) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a | string }}",
            "{{ 'x'.ljust(10000000000) }}",
            "{{ 'x'.zfill(10000000000) }}",
            "{% set s = 'a\n' * 100000 %}{{ s | indent(1000) | length }}",
            "{{ 'x' | indent(10000000000) }}",
            "{% set s = 'x' * 1000000 %}{{ ([s] * 10000) | join(s) | length }}",
            "{{ [1] | tojson(indent=10000000000) }}",
            // Lists that are larger than what they were made of.
            "{% set s = 'a ' * 1000000 %}{% set ns = namespace(a=[]) %}{% for i in range(1000) %}{% set ns.a = ns.a + [s.split()] %}{% endfor %}",
            "{% set s = 'a\n' * 1000000 %}{% set ns = namespace(a=[]) %}{% for i in range(1000) %}{% set ns.a = ns.a + [s.splitlines()] %}{% endfor %}",
            // Reading costs, too.
            "{% set s = 'x' * 1000000 %}{% for i in range(90000) %}{{ s.find('y') }}{% endfor %}",
        ] {
            assert!(render(source).is_err(), "{source}");
        }
    }
}
