//! Changes of inputs: of bytes, of the values of a JSON, of the parts of a GGUF file, of the files of a folder.

use serde_json::{Value, json};

use super::gguf_file::GgufFile;
use super::inputs::{Target, files_of, folder_of};
use super::random::Random;

/// Longer ones are not made: what is wrong shows in short ones, and these are many a second.
const LONGEST: usize = 64 << 10;

/// One to four changes of `input`; parts may come from `other`.
pub fn changed(target: Target, input: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=random.below(4) {
        bytes = match target {
            Target::Gguf => of_gguf(&bytes, other, random),
            Target::Folder => of_folder(&bytes, other, random),
            Target::Tokenizer => of_json(&bytes, other, random),
            Target::Template => of_template(&bytes, other, random),
        };
    }
    bytes.truncate(LONGEST);
    bytes
}

fn of_gguf(bytes: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    match GgufFile::read(bytes) {
        Some(mut file) if random.below(4) > 0 => {
            file.change(random);
            file.bytes()
        }
        _ => of_bytes(bytes, other, random),
    }
}

fn of_folder(bytes: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    let mut files = files_of(bytes);
    let others = files_of(other);
    if files.is_empty() {
        return of_bytes(bytes, other, random);
    }
    let which = random.below(files.len());
    let (name, content) = files[which].clone();
    let of_other = others
        .iter()
        .find(|(other, _)| *other == name)
        .map_or(&[] as &[u8], |(_, content)| content.as_slice());
    match random.below(16) {
        0 => drop(files.remove(which)),
        1 => files[which].1 = of_other.to_vec(),
        _ if name.ends_with(".json") => files[which].1 = of_json(&content, of_other, random),
        _ if name.ends_with(".safetensors") => files[which].1 = of_safetensors(&content, of_other, random),
        _ => files[which].1 = of_bytes(&content, of_other, random),
    }
    folder_of(&files)
}

/// A header of JSON behind its length, then numbers.
fn of_safetensors(bytes: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    let header = || {
        let length = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?) as usize;
        Some((bytes.get(8..)?.get(..length)?, bytes.get(8 + length..)?))
    };
    match header() {
        Some((header, numbers)) if random.below(4) > 0 => {
            let header = of_json(header, &[], random);
            [&(header.len() as u64).to_le_bytes()[..], &header, numbers].concat()
        }
        _ => of_bytes(bytes, other, random),
    }
}

fn of_json(bytes: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    let Ok(mut json) = serde_json::from_slice::<Value>(bytes) else { return of_bytes(bytes, other, random) };
    if random.below(6) == 0 {
        return of_bytes(bytes, other, random);
    }
    let replacement = match (random.below(3), serde_json::from_slice::<Value>(other)) {
        (0, Ok(other)) => nth(&other, &mut random.below(count(&other))).cloned().unwrap_or_default(),
        (1, _) => nth(&json, &mut random.below(count(&json))).cloned().unwrap_or_default(),
        _ => value(random),
    };
    let mut at = random.below(count(&json));
    change(&mut json, &mut at, replacement, random);
    json.to_string().into_bytes()
}

fn value(random: &mut Random) -> Value {
    let edge = random.edge();
    let all = [
        json!(null),
        json!(true),
        json!(false),
        json!([]),
        json!({}),
        json!(""),
        json!("a"),
        json!("\u{0}é🙂"),
        json!(edge),
        json!(edge),
        json!(edge),
        json!(-(edge as f64)),
        json!(1e300),
        json!(0.5),
        json!(-1),
        json!(edge.to_string()),
        json!("x".repeat(random.below(3000))),
        json!([edge]),
        json!({"type": "BPE"}),
        json!({"type": "Sequence", "normalizers": [], "pretokenizers": [], "decoders": [], "processors": []}),
        json!({"Regex": "(a|b)*?(?=c)"}),
        json!({"String": ""}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}),
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        json!({"type": "Strip", "content": "a", "start": edge, "stop": edge}),
        json!({"type": "Fuse"}),
        json!({"type": "Replace", "pattern": {"Regex": ""}, "content": "ab"}),
        json!({"type": "NFKC"}),
        json!({"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}),
    ];
    random.pick(&all).clone()
}

/// Values inside a value, itself one of them.
fn count(json: &Value) -> usize {
    1 + match json {
        Value::Array(all) => all.iter().map(count).sum::<usize>(),
        Value::Object(all) => all.values().map(count).sum(),
        _ => 0,
    }
}

fn nth<'a>(json: &'a Value, at: &mut usize) -> Option<&'a Value> {
    if *at == 0 {
        return Some(json);
    }
    *at -= 1;
    match json {
        Value::Array(all) => all.iter().find_map(|inside| nth(inside, at)),
        Value::Object(all) => all.values().find_map(|inside| nth(inside, at)),
        _ => None,
    }
}

/// Puts another value in the place of one, or takes something out of it, or doubles what it has.
fn change(json: &mut Value, at: &mut usize, replacement: Value, random: &mut Random) -> bool {
    if *at == 0 {
        match (json, random.below(4)) {
            (Value::Array(all), 0) if !all.is_empty() => drop(all.remove(random.below(all.len()))),
            (Value::Array(all), 1) => all.extend(all.clone()),
            (Value::Array(all), 2) => all.push(replacement),
            (Value::Object(all), 0) if !all.is_empty() => {
                let key = all.keys().nth(random.below(all.len())).cloned().unwrap_or_default();
                all.remove(&key);
            }
            (Value::Object(all), 1) if !all.is_empty() => {
                let key = all.keys().nth(random.below(all.len())).cloned().unwrap_or_default();
                let value = all.remove(&key).unwrap_or_default();
                all.insert(format!("{key}x"), value);
            }
            (Value::Number(n), 0) if n.is_u64() => {
                *n = n.as_u64().unwrap_or(0).wrapping_add(random.edge()).into();
            }
            (json, _) => *json = replacement,
        }
        return true;
    }
    *at -= 1;
    match json {
        Value::Array(all) => all.iter_mut().any(|inside| change(inside, at, replacement.clone(), random)),
        Value::Object(all) => all.values_mut().any(|inside| change(inside, at, replacement.clone(), random)),
        _ => false,
    }
}

fn of_template(bytes: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    const PARTS: &[&str] = &[
        "{% for x in messages %}",
        "{% endfor %}",
        "{{ messages }}",
        "{% set s = s ~ s %}",
        "{% set ns.s = ns.s + ns.s %}",
        "{% set ns = namespace(s='xy', a=[1]) %}",
        "{% set ns.a = ns.a + ns.a %}",
        "{% for i in range(1000) %}",
        "{% if x %}",
        "{% else %}",
        "{% endif %}",
        "{% macro m(a) %}",
        "{% endmacro %}",
        "{{ m(m) }}",
        "{% set x %}",
        "{% endset %}",
        "{% filter upper %}",
        "{% endfilter %}",
        "{{ ns.s * 1000 }}",
        "{{ messages | tojson }}",
        "| replace('x', ns.s)",
        "| join(ns.s)",
        "| list",
        "| sort",
        "| batch(2)",
        "| groupby('role')",
        "| map('upper')",
        ".split('')",
        ".format(ns.s)",
        "| indent(1000)",
        "| tojson(indent=1000)",
        "{% raw %}",
        "{% endraw %}",
        "{#",
        "#}",
        "{{",
        "}}",
        "{%",
        "%}",
        "(",
        ")",
        "[",
        "]",
        "~",
        "loop(messages)",
        "recursive",
        "ns.s",
        "messages[0]",
        "[::-1]",
        "{% generation %}",
        "{% endgeneration %}",
        "{% call m(1) %}",
        "{% endcall %}",
        "caller()",
        "| unique",
        "| safe",
    ];
    if random.below(3) == 0 {
        return of_bytes(bytes, other, random);
    }
    let mut at = random.below(bytes.len() + 1);
    // Between tags as often as within.
    if random.below(2) == 0 {
        at = bytes[..at].iter().rposition(|b| *b == b'}').map_or(0, |at| at + 1);
    }
    [&bytes[..at], random.pick(PARTS).as_bytes(), &bytes[at..]].concat()
}

fn of_bytes(bytes: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let at = random.below(bytes.len());
    let length = [1, 1, 2, 4, 8, 32, random.below(bytes.len())][random.below(7)]
        .min(bytes.len() - at.min(bytes.len()));
    match random.below(8) {
        0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
        1 if !bytes.is_empty() => bytes[at] = random.next() as u8,
        2 => {
            let edge = random.edge().to_le_bytes();
            let width = *random.pick(&[1, 4, 8]);
            bytes.iter_mut().skip(at).zip(&edge[..width]).for_each(|(byte, edge)| *byte = *edge);
        }
        3 => bytes.truncate(at),
        4 => drop(bytes.drain(at..at + length)),
        5 => {
            let again = bytes[at..at + length].to_vec();
            drop(bytes.splice(at..at, again));
        }
        6 => {
            let from = random.below(other.len());
            let part = &other[from..(from + length).min(other.len())];
            drop(bytes.splice(at..at + length.min(part.len()), part.iter().copied()));
        }
        _ => {
            // Another number in the place of one that is written in digits.
            let digits = |b: &u8| b.is_ascii_digit();
            let begin = bytes.iter().skip(at).position(digits).map_or(bytes.len(), |n| at + n);
            let end = bytes[begin..].iter().position(|b| !digits(b)).map_or(bytes.len(), |n| begin + n);
            drop(bytes.splice(begin..end, random.edge().to_string().into_bytes()));
        }
    }
    bytes
}
