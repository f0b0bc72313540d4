//! The service over an engine that the test plays: what is asked of it, and what becomes of its tokens.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};

use super::generate::Collected;
use super::*;
use crate::clock::{Clock, Tick};
use crate::engine::event::{
    EventSender, FinishReason, GenerateRequest, Guess, SequenceStats, Tier, TokenEvent, TokenLogprob,
};
use crate::engine::stats::EngineStats;
use crate::engine::worker::{Command, EngineHandle};
use crate::text::tokenizer::{STAND_IN_SPECIALS, STAND_IN_TEMPLATE};
use crate::wire::fields::UnknownParameters;

const VOCAB: usize = 400;
const END: u32 = 399;
const CONTEXT: usize = 64;

/// A service, and the engine's end of it.
struct Bench {
    service: Service,
    commands: Receiver<Command>,
    clock: Clock,
}

fn bench_with(max_queue: usize, change: impl FnOnce(&mut ServedModel)) -> Bench {
    let clock = Clock::fake();
    let unit = Unit::new(clock.clone());
    let stats = Arc::new(EngineStats::default());
    stats.ready.store(true, std::sync::atomic::Ordering::Release);
    stats.beat(clock.now());
    let (sender, commands) = channel();
    unit.open(vec![EngineHandle { commands: sender, stats, slots: 0, max_queue }]);
    let mut model = ServedModel {
        id: "stand-in".into(),
        aliases: vec!["other".into()],
        created: 1,
        max_model_len: CONTEXT,
        vocab: VOCAB + 8,
        end_tokens: vec![END],
        tokenizer: Arc::new(Tokenizer::stand_in(VOCAB).unwrap()),
        template: Some(ChatTemplate::new(STAND_IN_TEMPLATE, "", STAND_IN_SPECIALS[2]).unwrap()),
        thoughts: None,
        dialect: None,
        grammars: Default::default(),
        defaults: SamplingDefaults::default(),
        unit: unit.clone(),
    };
    change(&mut model);
    Bench { service: Service::new(vec![model], unit), commands, clock }
}

fn bench() -> Bench {
    bench_with(1000, |_| {})
}

impl Bench {
    fn complete(&self, body: Value) -> Result<Generation, ServiceError> {
        let request = CompletionRequest::parse(body.to_string().as_bytes(), UnknownParameters::Refuse)?;
        self.service.complete(&request)
    }

    fn chat(&self, body: Value) -> Result<Generation, ServiceError> {
        let request = ChatRequest::parse(body.to_string().as_bytes(), UnknownParameters::Refuse)?;
        self.service.chat(&request)
    }

    fn ids(&self, text: &str) -> Vec<u32> {
        self.service.models()[0].tokenizer.encode(text, false).unwrap()
    }

    /// The next request that reached the engine.
    fn asked(&self) -> (GenerateRequest, EventSender) {
        match self.commands.try_recv().unwrap() {
            Command::Submit { request, events } => (*request, events),
            _ => panic!("no request"),
        }
    }

    fn params_of(&self, body: Value) -> GenerateRequest {
        let _generation = self.complete(body).unwrap();
        self.asked().0
    }
}

fn token(id: u32) -> TokenEvent {
    let logprob = TokenLogprob { id, logprob: -1.0, top: vec![(id, -1.0), (b'?'.into(), -2.0)] };
    TokenEvent::Token { id, logprob: Some(Box::new(logprob)), guess: Guess::default() }
}

fn finished(reason: FinishReason) -> TokenEvent {
    let stats = SequenceStats {
        cached_tokens: 3,
        queued_at: Tick(0),
        scheduled_at: Tick(1_000_000_000),
        first_token_at: Tick(3_000_000_000),
        finished_at: Tick(6_000_000_000),
        ..SequenceStats::default()
    };
    TokenEvent::Finished { reason, stats: Box::new(stats) }
}

fn error_of(result: Result<Generation, ServiceError>) -> (Option<String>, Option<&'static str>, String) {
    match result.err().expect("the request was taken") {
        ServiceError::Invalid { message, param, code } => (param, code, message),
        other => panic!("{other}"),
    }
}

/// Plays tokens into a completion with these stop strings; (text, finish, completion tokens, log-probabilities).
async fn play(tokens: &[u32], reason: FinishReason, extra: Value) -> (String, Finish, usize, Vec<String>) {
    let bench = bench();
    let mut body = json!({"prompt": "p", "max_tokens": 40, "logprobs": 1});
    for (k, v) in extra.as_object().unwrap() {
        body[k] = v.clone();
    }
    let generation = bench.complete(body).unwrap();
    let (_, events) = bench.asked();
    for id in tokens {
        events.send(token(*id));
    }
    events.send(finished(reason));
    let Collected { mut choices, usage } = generation.collect().await.unwrap();
    assert_eq!((choices.len(), usage.prompt_tokens), (1, 1));
    let choice = choices.remove(0);
    let logprobs = choice.logprobs.into_iter().map(|l| l.token).collect();
    (choice.text, choice.finish.unwrap(), usage.completion_tokens, logprobs)
}

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

#[tokio::test]
async fn the_bytes_of_the_stand_in_are_not_its_ids() {
    // The stand-in's ids are the bytes themselves; the tests below rely on it.
    assert_eq!(bench().ids("aé"), bytes("aé"));
}

#[tokio::test]
async fn tokens_become_text_and_are_counted() {
    use FinishReason::{Length, Stop};
    let with_end = |text: &str| [bytes(text), vec![END]].concat();
    let cases = [
        // An end-of-sequence token counts, has no text and no entry.
        (with_end("hé"), Stop, json!({}), "hé", Finish::Stop, 4, 3),
        (bytes("hello"), Length, json!({}), "hello", Finish::Length, 5, 5),
        // Under ignore_eos it is a token like any other, without text.
        (vec![104, END, 105], Length, json!({"ignore_eos": true}), "hi", Finish::Length, 3, 3),
        // A character that is cut short by the limit; a byte that begins none.
        (bytes("a€")[..3].to_vec(), Length, json!({}), "a\u{fffd}", Finish::Length, 3, 3),
        (vec![97, 0xff, 98], Length, json!({}), "a\u{fffd}b", Finish::Length, 3, 3),
        // Tokens at and after a stop string are cut from text, counts and log-probabilities.
        (bytes("one\n\ntwo"), Length, json!({"stop": "\n\n"}), "one", Finish::Stop, 3, 3),
        (bytes("ab"), Length, json!({"stop": ["ab"]}), "", Finish::Stop, 0, 0),
        (bytes("a€b"), Length, json!({"stop": "€"}), "a", Finish::Stop, 1, 1),
        // What only began like a stop string is shown when the sequence ends.
        (bytes("ab<en"), Length, json!({"stop": "<end>"}), "ab<en", Finish::Length, 5, 5),
        (with_end("ab<en"), Stop, json!({"stop": "<end>"}), "ab<en", Finish::Stop, 6, 5),
        // A token that holds the stop string and text before it is kept in part, and counted.
        (vec![97, 300, 98], Length, json!({"stop": "300"}), "a w", Finish::Stop, 2, 2),
        // Before min_tokens no stop string counts.
        (bytes("\n\nx\ny"), Length, json!({"stop": "\n", "min_tokens": 2}), "\n\nx", Finish::Stop, 3, 3),
        // A stop token that has text ends without it.
        (bytes("hi!"), Stop, json!({"stop_token_ids": [33]}), "hi", Finish::Stop, 3, 2),
        // An id that only the model has.
        (vec![97, 405, 98], Length, json!({}), "ab", Finish::Length, 3, 3),
    ];
    for (tokens, reason, extra, text, finish, counted, entries) in cases {
        let got = play(&tokens, reason, extra.clone()).await;
        assert_eq!(
            (got.0.as_str(), got.1, got.2, got.3.len()),
            (text, finish, counted, entries),
            "{extra} {tokens:?}"
        );
    }
}

#[tokio::test]
async fn log_probabilities_spell_the_tokens() {
    let (_, _, _, tokens) = play(&[97, 300, END], FinishReason::Stop, json!({})).await;
    assert_eq!(tokens, ["a", " w300"]);
    let bench = bench();
    let generation = bench.complete(json!({"prompt": "p", "logprobs": 2})).unwrap();
    let (request, events) = bench.asked();
    assert_eq!((request.sampling.logprobs, request.prompt_logprobs), (Some(2), None));
    events.send(token(0xe2));
    events.send(finished(FinishReason::Length));
    let entry = generation.collect().await.unwrap().choices[0].logprobs[0].clone();
    assert_eq!((entry.token.as_str(), entry.bytes, entry.logprob), ("\u{fffd}", vec![0xe2], Some(-1.0)));
    assert_eq!(entry.top[1], TopLogprob { token: "?".into(), bytes: b"?".to_vec(), logprob: -2.0 });
}

#[tokio::test]
async fn text_is_let_through_as_it_comes_and_a_stop_string_cancels() {
    let bench = bench();
    let mut generation = bench.complete(json!({"prompt": "p", "stop": "END"})).unwrap();
    let (_, events) = bench.asked();
    let text = |s: &str| Delta::Text { choice: 0, text: s.into(), logprobs: vec![] };
    let plain = |c: u8| TokenEvent::Token { id: c.into(), logprob: None, guess: Guess::default() };
    for (c, delta) in [(b'a', Some(text("a"))), (b'E', None), (b'N', None), (b'x', Some(text("ENx")))] {
        events.send(plain(c));
        let next = tokio::time::timeout(Duration::from_millis(20), generation.next()).await;
        assert_eq!(next.ok().flatten(), delta);
    }
    b"END".iter().for_each(|c| assert!(events.send(plain(*c))));
    bench.clock.advance(Duration::from_secs(2));
    assert_eq!(generation.next().await, Some(Delta::Finish { choice: 0, reason: Finish::Stop }));
    assert!(events.is_closed(), "the sequence is cancelled");
    assert_eq!(generation.next().await, None);
    assert_eq!((generation.usage().completion_tokens, generation.timings().end_to_end), (4, Some(2.0)));
}

#[tokio::test]
async fn guesses_are_counted_up_to_where_the_text_ends() {
    let step = |text: &[u32], guesses: u16, right: usize| {
        let computed = |at| if at == 0 { guesses } else { 0 };
        let token = |(at, id): (usize, &u32)| TokenEvent::Token {
            id: *id,
            logprob: None,
            guess: Guess { computed: computed(at), right: at < right },
        };
        text.iter().enumerate().map(token).collect::<Vec<_>>()
    };
    let of = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
    let cut = [step(&of("a"), 0, 0), step(&of("bcENDxy"), 9, 6)].concat();
    let mut ended = [step(&of("a"), 2, 0), step(&[98, END], 5, 2)].concat();
    ended.push(finished(FinishReason::Stop));
    for (events, counts) in [(cut, (3, 2, 7)), (ended, (3, 2, 5))] {
        let bench = bench();
        let generation = bench.complete(json!({"prompt": "p", "stop": "END"})).unwrap();
        let (_, engine) = bench.asked();
        events.into_iter().for_each(|event| assert!(engine.send(event)));
        let usage = generation.collect().await.unwrap().usage;
        assert_eq!((usage.completion_tokens, usage.right_guesses, usage.wrong_guesses), counts);
    }
}

#[tokio::test]
async fn choices_are_one_stream_and_share_the_prompt() {
    let bench = bench();
    let generation = bench.complete(json!({"prompt": ["ab", [99]], "n": 2, "seed": 5})).unwrap();
    assert_eq!(generation.choices(), 4);
    let asked: Vec<_> = (0..4).map(|_| bench.asked()).collect();
    let prompts: Vec<&[u32]> = asked.iter().map(|a| &*a.0.prompt).collect();
    assert_eq!(prompts, [&[97, 98][..], &[97, 98], &[99], &[99]]);
    assert_eq!(asked.iter().map(|a| a.0.sampling.seed).collect::<Vec<_>>(), [5, 6, 5, 6]);
    for (i, (_, events)) in asked.iter().enumerate().rev() {
        events.send(token(b'0' as u32 + i as u32));
        events.send(finished(FinishReason::Length));
    }
    let timed = generation.timings();
    assert_eq!(timed, Timings::default(), "nothing has ended yet");
    let collected = generation.collect().await.unwrap();
    let texts: Vec<_> = collected.choices.iter().map(|c| c.text.as_str()).collect();
    assert_eq!(texts, ["0", "1", "2", "3"]);
    assert_eq!(
        collected.usage,
        Usage {
            prompt_tokens: 3,
            completion_tokens: 4,
            reasoning_tokens: 0,
            right_guesses: 0,
            wrong_guesses: 0,
            cached_tokens: 3
        }
    );
}

#[tokio::test]
async fn one_failure_ends_all_and_a_dropped_generation_cancels_all() {
    let bench = bench();
    let mut generation = bench.complete(json!({"prompt": "p", "n": 3})).unwrap();
    let asked: Vec<_> = (0..3).map(|_| bench.asked().1).collect();
    asked[1].send(TokenEvent::Failed(Box::new(EngineError::NonFiniteLogits)));
    assert_eq!(generation.next().await, Some(Delta::Failed(EngineError::NonFiniteLogits.into())));
    assert_eq!(generation.next().await, None);
    assert!(asked.iter().all(EventSender::is_closed));

    let generation = bench.complete(json!({"prompt": "p", "n": 2})).unwrap();
    let asked: Vec<_> = (0..2).map(|_| bench.asked().1).collect();
    drop(generation);
    assert!(asked.iter().all(EventSender::is_closed));

    // An engine that vanishes is an error, not an end.
    let generation = bench.complete(json!({"prompt": "p"})).unwrap();
    drop(bench.asked());
    assert!(matches!(generation.collect().await, Err(ServiceError::Engine(EngineError::Dead(_)))));
}

#[tokio::test]
async fn a_full_queue_takes_all_choices_or_none() {
    let bench = bench_with(2, |_| {});
    let refused = bench.complete(json!({"prompt": "p", "n": 3})).err();
    assert_eq!(refused, Some(ServiceError::Engine(EngineError::QueueFull { waiting: 2, limit: 2 })));
    assert!((0..2).all(|_| bench.asked().1.is_closed()));
    bench.service.unit().drain();
    let refused = bench.complete(json!({"prompt": "p"})).err();
    assert_eq!(refused, Some(ServiceError::Engine(EngineError::Stopping)));
}

#[tokio::test]
async fn an_echo_is_the_prompt_as_it_was_written() {
    let bench = bench();
    for (prompt, shown) in [(json!("a<|im_end|>b"), "a<|im_end|>b"), (json!([97, END, 98]), "a<|im_end|>b")] {
        let generation = bench.complete(json!({"prompt": prompt, "echo": true})).unwrap();
        let (request, events) = bench.asked();
        assert_eq!((&*request.prompt, request.prompt_logprobs), (&[97, END, 98][..], None));
        events.send(token(b'!' as u32));
        events.send(finished(FinishReason::Length));
        let collected = generation.collect().await.unwrap();
        assert_eq!(
            (collected.choices[0].text.as_str(), collected.usage.completion_tokens),
            (&*format!("{shown}!"), 1)
        );
    }
    // Scored, and nothing generated: the engine's one token is not shown.
    let body = json!({"prompt": "ab", "echo": true, "logprobs": 1, "max_tokens": 0});
    let generation = bench.complete(body).unwrap();
    let (request, events) = bench.asked();
    assert_eq!((request.max_tokens, request.prompt_logprobs), (1, Some(1)));
    events.send(TokenEvent::Prompt(vec![TokenLogprob { id: 98, logprob: -0.5, top: vec![] }]));
    events.send(token(b'!' as u32));
    events.send(finished(FinishReason::Length));
    let collected = generation.collect().await.unwrap();
    let choice = &collected.choices[0];
    assert_eq!((choice.text.as_str(), choice.finish), ("ab", Some(Finish::Length)));
    assert_eq!(choice.logprobs.iter().map(|l| l.logprob).collect::<Vec<_>>(), [None, Some(-0.5)]);
    assert_eq!(collected.usage.completion_tokens, 0);
}

/// A vocabulary of SentencePiece's: a word holds the space before it, and a text's first space is stripped.
fn words() -> Tokenizer {
    let pieces = ["<unk>", "▁", "▁one", "▁two"].into_iter().enumerate();
    let vocab: serde_json::Map<String, Value> = pieces.map(|(id, piece)| (piece.into(), id.into())).collect();
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let json = json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": metaspace,
        "post_processor": null, "truncation": null, "padding": null, "decoder": metaspace,
        "model": {"type": "WordLevel", "unk_token": "<unk>", "vocab": vocab},
    });
    Tokenizer::from_json("words", json.to_string().as_bytes()).unwrap()
}

#[tokio::test]
async fn a_completion_keeps_its_first_space_and_an_answer_has_none() {
    let bench = bench_with(9, |model| model.tokenizer = Arc::new(words()));
    let completion = json!({"prompt": "one", "echo": true});
    let chat = json!({"messages": [{"role": "user", "content": "one"}]});
    for (generation, text) in [(bench.complete(completion), "one two one"), (bench.chat(chat), "two one")] {
        let generation = generation.unwrap();
        let (_, events) = bench.asked();
        events.send(token(3));
        events.send(token(2));
        events.send(finished(FinishReason::Length));
        assert_eq!(generation.collect().await.unwrap().choices[0].text, text);
    }
}

#[tokio::test]
async fn the_engine_is_asked_for_what_the_request_says() {
    let bench = bench_with(1000, |model| {
        model.defaults = SamplingDefaults::of(&json!({
            "temperature": 0.6, "top_k": 20, "top_p": 7.0, "repetition_penalty": 0, "do_sample": true}));
    });
    let plain = bench.params_of(json!({"prompt": "p"}));
    let s = &plain.sampling;
    assert_eq!((s.temperature, s.top_k, s.top_p, s.repetition_penalty), (0.6, 20, 1.0, 1.0));
    assert_eq!((plain.max_tokens, plain.min_tokens, plain.cache_salt), (16, 0, 0));
    assert_eq!((&*plain.stop_token_ids, plain.tier), (&[END][..], Tier::Default));
    assert_ne!(s.seed, bench.params_of(json!({"prompt": "p"})).sampling.seed, "a fresh seed each time");

    let set = bench.params_of(json!({
        "prompt": "p", "temperature": 1.5, "top_k": -1, "top_p": 0.5, "min_p": 0.1, "presence_penalty": 1,
        "frequency_penalty": -1, "repetition_penalty": 1.1, "logit_bias": {"7": 5}, "seed": 9, "min_tokens": 2,
        "max_tokens": 3, "stop_token_ids": [4], "ignore_eos": true, "service_tier": "flex", "cache_salt": "s"
    }));
    let s = &set.sampling;
    assert_eq!((s.temperature, s.top_k, s.top_p, s.min_p, s.seed), (1.5, 0, 0.5, 0.1, 9));
    assert_eq!((s.presence_penalty, s.frequency_penalty, s.repetition_penalty), (1.0, -1.0, 1.1));
    assert_eq!((s.logit_bias.as_slice(), set.max_tokens, set.min_tokens), (&[(7, 5.0)][..], 3, 2));
    assert_eq!((&*set.stop_token_ids, set.tier), (&[4][..], Tier::Flex));
    let salted = |salt: &str| bench.params_of(json!({"prompt": "p", "cache_salt": salt})).cache_salt;
    assert!(salted("s") == set.cache_salt && salted("t") != set.cache_salt && set.cache_salt != 0);
    for greedy in [json!({"prompt": "p", "temperature": 1e-6}), json!({"prompt": "p", "top_p": 0})] {
        assert_eq!(bench.params_of(greedy).sampling.temperature, 0.0);
    }
}

#[tokio::test]
async fn what_does_not_fit_the_model_is_refused_by_name() {
    let bench = bench();
    let prompt = |n: usize| "x".repeat(n);
    let (param, code, message) = error_of(bench.complete(json!({"prompt": prompt(60), "max_tokens": 5})));
    assert_eq!((param.as_deref(), code), (Some("prompt"), Some("context_length_exceeded")));
    assert!(message.contains("64") && message.contains("60") && message.contains('5'), "{message}");
    assert!(bench.complete(json!({"prompt": prompt(60), "max_tokens": 4})).is_ok());

    let message = |n: usize| json!({"messages": [{"role": "user", "content": prompt(n)}]});
    // The template's own tokens: 2 × start, role and newline, end and newline.
    let around = bench.ids("<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n").len();
    let _ = bench.asked();
    let whole = bench.chat(message(10)).unwrap();
    assert_eq!(
        (whole.usage().prompt_tokens, bench.asked().0.max_tokens),
        (around + 10, CONTEXT - around - 10)
    );
    for n in [CONTEXT - around, CONTEXT, 1 << 22] {
        let (param, code, _) = error_of(bench.chat(message(n)));
        assert_eq!((param.as_deref(), code), (Some("messages"), Some("context_length_exceeded")));
    }
    for (name, body) in [
        ("prompt", json!({"prompt": ""})),
        ("prompt", json!({"prompt": [[]]})),
        ("prompt", json!({"prompt": [408]})),
        ("logit_bias", json!({"prompt": "p", "logit_bias": {"408": 1}})),
        ("stop_token_ids", json!({"prompt": "p", "stop_token_ids": [408]})),
        ("min_tokens", json!({"prompt": "p", "min_tokens": 20})),
    ] {
        assert_eq!(error_of(bench.complete(body)).0.as_deref(), Some(name));
    }
    assert!(bench.commands.try_recv().is_err(), "nothing of this reached the engine");
}

#[tokio::test]
async fn models_are_found_by_their_names() {
    let bench = bench();
    for name in ["stand-in", "other"] {
        assert!(bench.complete(json!({"model": name, "prompt": "p"})).is_ok());
    }
    let unknown = bench.complete(json!({"model": "gpt-9", "prompt": "p"})).err();
    assert_eq!(unknown, Some(ServiceError::UnknownModel("gpt-9".into())));
    let bare = bench_with(9, |model| model.template = None);
    let body = json!({"messages": [{"role": "user", "content": "x"}]});
    assert!(error_of(bare.chat(body)).2.contains("no chat template"));
    assert!(bare.complete(json!({"prompt": "p"})).is_ok());
}

#[tokio::test]
async fn a_template_that_fails_is_the_requests_fault() {
    let bench = bench_with(9, |model| {
        let source = "{{ raise_exception('only users here') }}";
        model.template = Some(ChatTemplate::new(source, "", "").unwrap());
    });
    let (param, _, message) = error_of(bench.chat(json!({"messages": [{"role": "system", "content": "x"}]})));
    assert!(param.as_deref() == Some("messages") && message.contains("only users here"), "{message}");
}

#[tokio::test]
async fn a_developer_is_a_system_to_templates_that_know_none() {
    let body = json!({"messages": [{"role": "developer", "content": "x"}], "add_generation_prompt": false});
    for (source, text) in
        [("{{ messages[0].role }}", "system"), ("{# developer #}{{ messages[0].role }}", "developer")]
    {
        let bench = bench_with(9, |model| model.template = Some(ChatTemplate::new(source, "", "").unwrap()));
        let _generation = bench.chat(body.clone()).unwrap();
        assert_eq!(*bench.asked().0.prompt, bench.ids(text));
    }
}

#[tokio::test]
async fn texts_are_tokenised_and_back() {
    let bench = bench();
    let tokenize = |body: Value| {
        let request = TokenizeRequest::parse(body.to_string().as_bytes(), UnknownParameters::Refuse).unwrap();
        bench.service.tokenize(&request).map(|(_, ids)| ids)
    };
    let detokenize = |tokens: &[u32]| {
        bench.service.detokenize(&DetokenizeRequest { model: None, tokens: tokens.to_vec() })
    };
    assert_eq!(tokenize(json!({"prompt": "aé"})).unwrap(), bytes("aé"));
    let ids = tokenize(json!({"messages": [{"role": "user", "content": "hi"}]})).unwrap();
    let rendered = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(detokenize(&ids).unwrap(), rendered);
    assert!(matches!(detokenize(&[408]), Err(ServiceError::Invalid { param: Some(p), .. }) if p == "tokens"));
    assert!(tokenize(json!({"prompt": "x".repeat(1 << 20)})).is_err(), "no context could hold it");
}
