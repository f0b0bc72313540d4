//! Calls of tools: whether the model can make them, and what its answer must be so that they are those asked for.

use serde_json::{Value, json};

use crate::service::constraint::{Thoughts, part};
use crate::service::{ServedModel, ServiceError};
use crate::text::answer::{Calls, Contents};
use crate::text::grammar::{GrammarError, Part, Source};
use crate::text::tool_calls::Dialect;
use crate::text::tool_calls::demand::{Demand, Otherwise, source};
use crate::wire::format::OutputFormat;
use crate::wire::tools::{Tool, ToolChoice, Tools};

/// What a conversation asks of its answer beside text.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked<'a> {
    pub thoughts: Option<Thoughts>,
    pub tools: Option<&'a Tools>,
}

impl ServedModel {
    /// How the model writes calls.
    ///
    /// # Errors
    /// One that cannot make any.
    pub(super) fn dialect_for(&self, _tools: &Tools) -> Result<Dialect, ServiceError> {
        let shown = self.template.as_ref().is_some_and(|template| template.for_tools().knows_tools());
        let why = match (shown, self.dialect) {
            (true, Some(dialect)) => return Ok(dialect),
            (false, _) => "its chat template shows it no tools",
            (true, None) => "how it writes calls is not known (--tool-call-parser)",
        };
        Err(ServiceError::Invalid {
            message: format!("The model `{}` cannot call tools: {why}", self.id),
            param: Some("tools".into()),
            code: Some("unsupported_parameter"),
        })
    }

    /// What the answer may hold.
    pub(super) fn contents(&self, asked: &Asked) -> Contents {
        let calls = asked.tools.zip(self.dialect).map(|(tools, dialect)| Calls {
            dialect,
            tools: tools.all.iter().map(|tool| tool.name.clone()).collect(),
            most: if tools.parallel { usize::MAX } else { 1 },
        });
        let harmony = self.dialect == Some(Dialect::Harmony);
        Contents {
            channels: harmony && (asked.thoughts.is_some() || calls.is_some()),
            thoughts: asked.thoughts.as_ref().map(|thoughts| (thoughts.marks, thoughts.start)),
            calls,
        }
    }

    /// The grammar that an answer must match, if any, and the field to blame if there is none.
    pub(super) fn source(
        &self,
        wanted: Option<&OutputFormat>,
        asked: &Asked,
    ) -> Result<Option<(Source, String)>, ServiceError> {
        let harmony = self.contents(asked).channels;
        let budget = asked.thoughts.and_then(|thoughts| thoughts.budget).filter(|_| harmony);
        let ruled = asked.tools.filter(|tools| wanted.is_some() || budget.is_some() || is_ruled(tools));
        let param = match (ruled, wanted) {
            (Some(_), _) => "tools".to_string(),
            (None, Some(wanted)) => wanted.param.clone(),
            (None, None) if budget.is_some() => "thinking_token_budget".into(),
            (None, None) => return Ok(None),
        };
        let answer = wanted.map(part);
        let dialect = match self.dialect {
            Some(dialect) if ruled.is_some() || harmony => dialect,
            _ => return Ok(answer.map(|answer| (Source::of(answer), param))),
        };
        let must = ruled.is_some_and(|tools| tools.choice != ToolChoice::Auto);
        let demand = Demand {
            tools: ruled.map(|tools| self.callable(tools)).transpose()?.unwrap_or_default(),
            many: ruled.is_some_and(|tools| tools.parallel && !matches!(tools.choice, ToolChoice::Named(_))),
            otherwise: match answer {
                _ if must => Otherwise::Nothing,
                Some(answer) => Otherwise::This(answer),
                None => Otherwise::Text,
            },
            thoughts: budget,
        };
        Ok(Some((source(dialect, demand, &self.tokenizer), param)))
    }

    /// The tools that may be called, each with the grammar of its arguments.
    fn callable(&self, tools: &Tools) -> Result<Vec<(String, Part)>, ServiceError> {
        let callable = tools.allowed.iter().map(|place| (*place, &tools.all[*place]));
        callable.map(|(place, tool)| Ok((tool.name.clone(), self.arguments(place, tool)?))).collect()
    }

    /// Of a schema that cannot be kept to, a tool that is not strict takes any object.
    fn arguments(&self, place: usize, tool: &Tool) -> Result<Part, ServiceError> {
        let part = Part::JsonSchema(schema(tool));
        let grammars = self.prepare_grammars().as_ref().map_err(Clone::clone);
        match grammars.and_then(|grammars| grammars.compile(Source::of(part.clone()))) {
            Ok(_) => Ok(part),
            Err(GrammarError::Busy) => Err(ServiceError::Busy(GrammarError::Busy.to_string())),
            Err(error) if tool.strict => {
                let param = format!("tools[{place}].function.parameters");
                Err(ServiceError::Invalid {
                    message: format!("{param}: {error}"),
                    param: Some(param),
                    code: Some("invalid_function_parameters"),
                })
            }
            Err(_) => Ok(Part::json_object()),
        }
    }
}

/// Whether calls must be kept to rules: otherwise the model writes what it likes, and calls are read out of it.
fn is_ruled(tools: &Tools) -> bool {
    tools.choice != ToolChoice::Auto
        || tools.allowed.len() < tools.all.len()
        || tools.all.iter().any(|tool| tool.strict)
}

/// The schema of a tool's arguments, which are an object.
fn schema(tool: &Tool) -> Value {
    let none = || json!({"type": "object", "properties": {}, "additionalProperties": false});
    let mut schema = tool.parameters.clone().unwrap_or_else(none);
    if let Some(map) = schema.as_object_mut()
        && !map.contains_key("type")
    {
        map.insert("type".into(), "object".into());
    }
    schema
}

/// An id for a call, as clients send it back.
pub(super) fn call_id(short: bool) -> String {
    let random = getrandom::u64().unwrap_or_default();
    match short {
        true => format!("{:09x}", random & 0xf_ffff_ffff),
        false => format!("call_{random:016x}{:08x}", getrandom::u32().unwrap_or_default()),
    }
}
