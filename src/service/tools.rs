//! Calls of tools: whether the model can make them, and what its answer must be so that they are those asked for.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::service::constraint::{Thoughts, part};
use crate::service::{ServedModel, ServiceError};
use crate::text::answer::{Calls, Contents};
use crate::text::grammar::{Grammar, GrammarError, Part, Source};
use crate::text::tool_calls::Dialect;
use crate::text::tool_calls::demand::{Demand, Otherwise, source};
use crate::wire::format::{Format, OutputFormat};
use crate::wire::tools::{Tool, ToolChoice, Tools};

/// What a conversation asks of its answer beside text.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked<'a> {
    pub thoughts: Option<Thoughts>,
    pub tools: Option<&'a Tools>,
    /// What the answer is thought to be.
    pub prediction: Option<&'a str>,
    /// Who asks, by the number that keeps prefixes apart.
    pub tenant: u64,
    /// The answer goes on with the prompt's text; one to a conversation is a text of its own.
    pub continues: bool,
}

impl ServedModel {
    /// # Errors
    /// A model that cannot call tools.
    pub(super) fn check_calls(&self) -> Result<(), ServiceError> {
        let shown = self.template.as_ref().is_some_and(|template| template.for_tools().knows_tools());
        let why = match (shown, self.dialect) {
            (true, Some(_)) => return Ok(()),
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

    /// The grammar that an answer must match, if any.
    pub(super) fn demanded(
        &self,
        wanted: Option<&OutputFormat>,
        asked: &Asked,
    ) -> Result<Option<Arc<Grammar>>, ServiceError> {
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
        let grammar = match (self.dialect.filter(|_| ruled.is_some() || harmony), answer) {
            (Some(dialect), answer) => self.compiled(dialect, ruled, answer, budget, asked.tenant),
            (None, Some(answer)) => self.compile(Source::of(answer), asked.tenant).map_err(Refused::Whole),
            (None, None) => return Ok(None),
        };
        grammar.map(Some).map_err(|refused| refused.told(&param, wanted))
    }

    /// Calls and answers as the dialect writes them. Only where all together cannot be compiled is each tool looked at.
    fn compiled(
        &self,
        dialect: Dialect,
        ruled: Option<&Tools>,
        answer: Option<Part>,
        thoughts: Option<usize>,
        tenant: u64,
    ) -> Result<Arc<Grammar>, Refused> {
        let must = ruled.is_some_and(|tools| tools.choice != ToolChoice::Auto);
        let demand = |tools: Vec<(String, Part)>| Demand {
            tools,
            many: ruled.is_some_and(|tools| tools.parallel && !matches!(tools.choice, ToolChoice::Named(_))),
            otherwise: match answer.clone() {
                _ if must => Otherwise::Nothing,
                Some(answer) => Otherwise::This(answer),
                None => Otherwise::Text,
            },
            thoughts,
        };
        let callable = || {
            let places =
                ruled.into_iter().flat_map(|tools| tools.allowed.iter().map(|i| (*i, &tools.all[*i])));
            places.collect::<Vec<_>>()
        };
        let all = callable().into_iter().map(|(_, tool)| (tool.name.clone(), Part::JsonSchema(schema(tool))));
        match self.compile(source(dialect, demand(all.collect()), &self.tokenizer), tenant) {
            Err(GrammarError::Schema(_) | GrammarError::Refused(_)) if ruled.is_some() => {}
            result => return result.map_err(Refused::Whole),
        }
        let begun = self.unit.clock().now();
        let mut tools = Vec::new();
        for (place, tool) in callable() {
            if self.unit.clock().now().since(begun) > LONGEST_LOOK {
                return Err(Refused::Whole(GrammarError::TooSlow));
            }
            let part = Part::JsonSchema(schema(tool));
            let part = match self.compile(Source::of(part.clone()), tenant) {
                Ok(_) => part,
                // Of a schema that cannot be kept to, a tool that is not strict takes any object.
                Err(GrammarError::Schema(_) | GrammarError::Refused(_)) if !tool.strict => {
                    Part::json_object()
                }
                Err(error) => return Err(Refused::Tool(place, error)),
            };
            tools.push((tool.name.clone(), part));
        }
        self.compile(source(dialect, demand(tools), &self.tokenizer), tenant).map_err(Refused::Whole)
    }

    fn compile(&self, source: Source, tenant: u64) -> Result<Arc<Grammar>, GrammarError> {
        self.prepare_grammars().as_ref().map_err(Clone::clone)?.compile(source, tenant)
    }
}

/// For tools to be looked at one by one.
const LONGEST_LOOK: Duration = Duration::from_secs(1);

/// What could not be compiled.
enum Refused {
    Whole(GrammarError),
    /// The arguments of the tool at this place.
    Tool(usize, GrammarError),
}

impl Refused {
    /// As the client is told, `param` being the field to blame for the whole.
    fn told(self, param: &str, wanted: Option<&OutputFormat>) -> ServiceError {
        let (param, error, code) = match self {
            Refused::Whole(GrammarError::Busy) | Refused::Tool(_, GrammarError::Busy) => {
                return ServiceError::Busy(GrammarError::Busy.to_string());
            }
            Refused::Whole(error) => {
                let of_schema =
                    wanted.is_some_and(|w| w.param == param && matches!(w.format, Format::JsonSchema(_)));
                (param.to_string(), error, of_schema.then_some("invalid_json_schema"))
            }
            Refused::Tool(place, error) => {
                (format!("tools[{place}].function.parameters"), error, Some("invalid_function_parameters"))
            }
        };
        ServiceError::Invalid { message: format!("{param}: {error}"), param: Some(param), code }
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
    // Without random numbers ids are the same; clients tell calls apart by their answers, too.
    let random = getrandom::u64().unwrap_or_default();
    match short {
        true => format!("{:09x}", random & 0xf_ffff_ffff),
        false => format!("call_{random:016x}{:08x}", getrandom::u32().unwrap_or_default()),
    }
}
