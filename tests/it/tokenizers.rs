//! Token ids, and text of them whole and token by token, equal those of HuggingFace's `tokenizers` in each family's
//! construction. The files are made by `benches/text_goldens.py`.

use std::sync::Arc;

use hashwatt::text::detokenizer::Detokenizer;
use hashwatt::text::tokenizer::Tokenizer;
use serde_json::Value;

const FILES: [&str; 2] = [include_str!("cases/text_byte_level.json"), include_str!("cases/text_pieces.json")];

fn ids(json: &Value) -> Vec<u32> {
    serde_json::from_value(json.clone()).unwrap()
}

fn streamed(tokenizer: &Arc<Tokenizer>, ids: &[u32]) -> String {
    let mut detokenizer = Detokenizer::new(tokenizer.clone(), Arc::new([]));
    let mut text: String = ids.iter().map(|id| detokenizer.push(*id)).collect();
    text += &detokenizer.finish();
    text
}

/// Calls `check` with each tokenizer of the files; what it says is wrong is told together.
fn each(check: impl Fn(&Arc<Tokenizer>, &Value, &Value, &mut Vec<String>)) {
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for file in FILES {
        let goldens: Value = serde_json::from_str(file).unwrap();
        for made in goldens["tokenizers"].as_array().unwrap() {
            let name = made["name"].as_str().unwrap();
            let tokenizer = Tokenizer::from_json(name, made["tokenizer"].to_string().as_bytes()).unwrap();
            let mut here = Vec::new();
            check(&Arc::new(tokenizer), made, &goldens["texts"], &mut here);
            wrong.extend(here.into_iter().map(|problem| format!("{name}: {problem}")));
            seen += 1;
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(seen > 12, "{seen} tokenizers");
}

#[test]
fn ids_of_texts_are_the_references() {
    each(|tokenizer, made, texts, wrong| {
        for (case, text) in made["cases"].as_array().unwrap().iter().zip(texts.as_array().unwrap()) {
            let text = text.as_str().unwrap();
            let around = case.get("around").unwrap_or(&case["ids"]);
            for (special, theirs) in [(false, &case["ids"]), (true, around)] {
                let (ours, theirs) = (tokenizer.encode(text, special).unwrap(), ids(theirs));
                if ours != theirs {
                    wrong.push(format!("{text:?} ({special})\n  ours   {ours:?}\n  theirs {theirs:?}"));
                }
            }
        }
    });
}

/// A completion goes on with the prompt's text, so the space before its first word is there; an answer begins anew.
#[test]
fn a_completion_is_what_it_adds_to_the_prompt() {
    let spaces = std::cell::Cell::new(0);
    each(|tokenizer, made, _, wrong| {
        for case in made["continued"].as_array().unwrap() {
            let [number, at] = [0, 1].map(|i| case[i].as_u64().unwrap() as usize);
            let of_text = &made["cases"][number];
            let ids = ids(of_text.get("around").unwrap_or(&of_text["ids"]));
            let (prompt, completion) = ids.split_at(at);
            let alone = case.get(3).unwrap_or(&case[2]);
            let mut behind = Detokenizer::behind(tokenizer.clone(), Arc::new([]), prompt);
            let mut text: String = completion.iter().map(|id| behind.push(*id)).collect();
            text += &behind.finish();
            for (way, ours, theirs) in
                [("behind", &text, &case[2]), ("alone", &streamed(tokenizer, completion), alone)]
            {
                if Some(ours.as_str()) != theirs.as_str() {
                    wrong.push(format!(
                        "{way} {prompt:?}, {completion:?}\n  ours   {ours:?}\n  theirs {theirs}"
                    ));
                }
            }
            spaces.set(spaces.get() + usize::from(alone != &case[2]));
        }
    });
    assert!(spaces.get() > 25, "{} differ from an answer", spaces.get());
}

#[test]
fn text_of_ids_is_the_references_whole_and_token_by_token() {
    each(|tokenizer, made, texts, wrong| {
        let cases = made["cases"].as_array().unwrap().iter().zip(texts.as_array().unwrap());
        let back = |case: &Value, text: &Value, i: usize| {
            case["back"][i].as_str().unwrap_or(text.as_str().unwrap()).to_string()
        };
        let loose = made["loose"].as_array().unwrap().iter();
        let loose = loose.map(|l| (ids(&l[0]), [1, 2].map(|i| l[i].as_str().unwrap().to_string())));
        let whole = cases.map(|(case, text)| (ids(&case["ids"]), [0, 1].map(|i| back(case, text, i))));
        for (ids, [plain, all]) in whole.chain(loose) {
            let ways = [
                ("decode", tokenizer.decode(&ids).unwrap(), &plain),
                ("decode_all", tokenizer.decode_all(&ids).unwrap(), &all),
                ("streamed", streamed(tokenizer, &ids), &plain),
            ];
            for (way, ours, theirs) in ways {
                if ours != *theirs {
                    wrong.push(format!("{way} of {ids:?}\n  ours   {ours:?}\n  theirs {theirs:?}"));
                }
            }
        }
    });
}
