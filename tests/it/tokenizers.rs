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

/// The first file's tokenizer of this name, changed.
fn mangled(name: &str, change: impl FnOnce(&mut Value)) -> Result<Tokenizer, String> {
    let all = FILES.map(|file| serde_json::from_str::<Value>(file).unwrap()["tokenizers"].take());
    let mut all = all.iter().flat_map(|made| made.as_array().unwrap());
    let mut json = all.find(|made| made["name"] == name).unwrap()["tokenizer"].clone();
    change(&mut json);
    Tokenizer::from_json("x/tokenizer.json", json.to_string().as_bytes()).map_err(|e| e.to_string())
}

#[test]
fn a_mangled_file_is_one_error_that_names_file_and_key() {
    let (llama3, llama2) = ("llama3, glm4", "llama2, mistral");
    type Change = fn(&mut Value);
    let cases: &[(&str, &str, Change)] = &[
        (llama3, "model.type", |t| t["model"]["type"] = "Tiktoken".into()),
        (llama3, "model", |t| t["model"] = 7.into()),
        (llama3, "model", |t| t["model"]["vocab"] = Value::Array(vec![])),
        (llama3, "model", |t| t["model"]["vocab"]["a"] = (-1).into()),
        (llama3, "model", |t| t["model"]["vocab"]["a"] = 5_000_000_000u64.into()),
        (llama3, "model", |t| t["model"]["merges"][0] = "no such".into()),
        (llama3, "model.vocab", |t| t["model"]["vocab"]["a"] = t["model"]["vocab"]["b"].clone()),
        (llama3, "model.vocab", |t| t["model"]["vocab"]["!"] = t["added_tokens"][0]["id"].clone()),
        (llama3, "added_tokens[0]", |t| t["added_tokens"][0]["id"] = 4_000_000_000u64.into()),
        (llama3, "added_tokens[1]", |t| t["added_tokens"][1]["id"] = 7.into()),
        (llama3, "added_tokens", |t| drop(t["added_tokens"].as_array_mut().unwrap().remove(1))),
        (llama3, "normalizer", |t| t["normalizer"] = "NFC".into()),
        (llama3, "pre_tokenizer", |t| t["pre_tokenizer"]["type"] = "Sequences".into()),
        (llama3, "pre_tokenizer", |t| {
            t["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(".into()
        }),
        (llama3, "post_processor", |t| t["post_processor"]["processors"][1]["special_tokens"] = Value::Null),
        (llama2, "post_processor", |t| t["post_processor"]["special_tokens"] = serde_json::json!({})),
        (llama2, "post_processor", |t| t["post_processor"]["special_tokens"]["<s>"]["ids"][0] = 9_999.into()),
        (llama2, "decoder", |t| t["decoder"]["decoders"][3]["stop"] = 3.into()),
        (llama2, "decoder", |t| t["decoder"]["decoders"][1]["type"] = "Bytes".into()),
    ];
    for (i, (name, key, change)) in cases.iter().enumerate() {
        let error = mangled(name, change).err().unwrap_or_else(|| panic!("case {i}, {key}: taken"));
        let start = format!("x/tokenizer.json: {key}");
        assert!(error.starts_with(&start) && error.len() < 400, "case {i}, {key}: {error}");
    }
    assert!(mangled(llama3, |_| ()).is_ok() && mangled(llama2, |_| ()).is_ok());
}

#[test]
fn a_file_that_is_cut_short_is_an_error_that_names_it() {
    let goldens: Value = serde_json::from_str(FILES[0]).unwrap();
    let whole = goldens["tokenizers"][0]["tokenizer"].to_string();
    for end in (0..whole.len()).step_by(331) {
        let Some(part) = whole.get(..end) else { continue };
        let error = Tokenizer::from_json("x/tokenizer.json", part.as_bytes()).err().unwrap().to_string();
        assert!(error.starts_with("x/tokenizer.json: "), "{end}: {error}");
    }
}
