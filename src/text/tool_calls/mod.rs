//! Calls of tools as models write them: five dialects, read as they come and written as grammars.
//!
//! | dialect | a call |
//! |---|---|
//! | hermes | `<tool_call>{"name": "f", "arguments": {…}}</tool_call>`, one after another; Qwen writes so too |
//! | llama3_json | `{"name": "f", "parameters": {…}}` as the whole answer, several with `;` between; or behind `<\|python_tag\|>` |
//! | mistral | `[TOOL_CALLS] [{"name": "f", "arguments": {…}}, …]`, or `[TOOL_CALLS]f[ARGS]{…}` for each |
//! | phi4_mini_json | `<\|tool_call\|>[{"name": "f", "arguments": {…}}]<\|/tool_call\|>`, or `functools[…]`; Granite too |
//! | openai | gpt-oss's channels: `<\|channel\|>commentary to=functions.f <\|constrain\|>json<\|message\|>{…}<\|call\|>` |
//!
//! The names are vLLM's. Which dialect a model speaks its chat template shows.

pub mod demand;
pub mod harmony;
pub mod marked;
pub mod object;

use std::sync::Arc;

/// The names of a request's tools.
pub type Names = Arc<[String]>;

/// How a model writes its calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Hermes,
    Llama3,
    /// A list of objects behind `[TOOL_CALLS]`.
    Mistral,
    /// A name, `[ARGS]` and an object behind each `[TOOL_CALLS]`.
    MistralArgs,
    Phi4,
    /// The list behind `functools`.
    Functools,
    Harmony,
}

impl Dialect {
    /// Names that an operator may choose by, beside `auto` and `none`.
    pub const NAMES: [&str; 5] = ["hermes", "llama3_json", "mistral", "phi4_mini_json", "openai"];

    /// What a chat template teaches its model.
    pub fn of_template(source: &str) -> Option<Dialect> {
        let has = |mark: &str| source.contains(mark);
        if has("<|channel|>") && has("<|message|>") {
            Some(Dialect::Harmony)
        } else if has("[TOOL_CALLS]") {
            Some(if has("[ARGS]") { Dialect::MistralArgs } else { Dialect::Mistral })
        } else if has("functools") {
            Some(Dialect::Functools)
        } else if has("<|tool_call|>") {
            Some(Dialect::Phi4)
        } else if has("<tool_call>") {
            // Qwen3-Coder's calls are no JSON.
            (!has("<function=")).then_some(Dialect::Hermes)
        } else if has("<|python_tag|>") || (has("<|start_header_id|>") && has("\"parameters\"")) {
            Some(Dialect::Llama3)
        } else {
            None
        }
    }

    /// By one of [`Dialect::NAMES`]; of two variants the one that this template shows.
    pub fn named(name: &str, template: &str) -> Option<Dialect> {
        Some(match name {
            "hermes" => Dialect::Hermes,
            "llama3_json" => Dialect::Llama3,
            "mistral" if template.contains("[ARGS]") => Dialect::MistralArgs,
            "mistral" => Dialect::Mistral,
            "phi4_mini_json" if template.contains("functools") => Dialect::Functools,
            "phi4_mini_json" => Dialect::Phi4,
            "openai" => Dialect::Harmony,
            _ => return None,
        })
    }

    /// The marks that its calls are read by.
    pub fn marks(self) -> &'static [&'static str] {
        match self {
            Dialect::Hermes => &["<tool_call>", "</tool_call>"],
            Dialect::Llama3 => &["<|python_tag|>"],
            Dialect::Mistral | Dialect::MistralArgs => &["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
            Dialect::Phi4 | Dialect::Functools => &["<|tool_call|>", "functools", "<|/tool_call|>"],
            Dialect::Harmony => {
                &["<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>"]
            }
        }
    }

    /// Mistral's templates take no other ids than nine letters and digits.
    pub fn wants_short_ids(self) -> bool {
        matches!(self, Dialect::Mistral | Dialect::MistralArgs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_shows_its_dialect() {
        for (source, dialect) in [
            ("<tools>{{ tools }}</tools> <tool_call>\n{\"name\"", Some(Dialect::Hermes)),
            ("<tool_call>\n<function=example>", None),
            ("{{ '[TOOL_CALLS] [' }}", Some(Dialect::Mistral)),
            ("{{ '[TOOL_CALLS]' + name + '[ARGS]' }}", Some(Dialect::MistralArgs)),
            ("<|tool|>{{ tools }}<|/tool|> <|tool_call|>", Some(Dialect::Phi4)),
            ("functools[", Some(Dialect::Functools)),
            ("{\"name\": f, \"parameters\": d}<|start_header_id|>", Some(Dialect::Llama3)),
            ("{{ '<|start|>assistant<|channel|>final<|message|>' }}", Some(Dialect::Harmony)),
            ("{{ messages }}", None),
        ] {
            assert_eq!(Dialect::of_template(source), dialect, "{source}");
        }
        for name in Dialect::NAMES {
            assert!(Dialect::named(name, "").is_some(), "{name}");
        }
        assert_eq!(Dialect::named("mistral", "[ARGS]"), Some(Dialect::MistralArgs));
    }
}
