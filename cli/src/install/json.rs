//! Putting a text into an array of a JSON object, and taking it out, without touching anything else of the file: no
//! order, no space. What comes out is parsed and compared with what it should be, so that a mistake is an error.

use std::ops::Range;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Map, Value};

/// The text with `value` first in the array `key`, which is made if it is not there; `None` when it has it already.
pub(super) fn add_first(text: &str, key: &str, value: &str) -> anyhow::Result<Option<String>> {
    let blank = text.trim().is_empty();
    let mut object = if blank { Map::new() } else { parse(text)? };
    let quoted = Value::from(value).to_string();
    let array = match object.get(key) {
        None => None,
        Some(Value::Array(array)) => Some(array.clone()),
        Some(other) => bail!("{key} is {other}, not a list"),
    };
    if array.iter().flatten().any(|item| item == value) {
        return Ok(None);
    }
    let changed = match (&array, blank) {
        (None, true) => format!("{{\n  {}: [{quoted}]\n}}\n", Value::from(key)),
        (None, false) => {
            let open = text.find('{').context("no object")?;
            let end = if object.is_empty() { "\n" } else { "," };
            insert(text, open + 1, &format!("\n  {}: [{quoted}]{end}", Value::from(key)))
        }
        (Some(array), _) => {
            let (_, open) = member(text, key)?.context("no such key")?;
            insert(text, open + 1, &if array.is_empty() { quoted } else { format!("{quoted}, ") })
        }
    };
    let mut wanted = array.unwrap_or_default();
    wanted.insert(0, value.into());
    object.insert(key.to_owned(), Value::Array(wanted));
    ensure!(parse(&changed)? == object, "it cannot be edited: add {value:?} to {key} by hand");
    Ok(Some(changed))
}

/// The text without `value` in the array `key`, and without the array if it is empty then. Empty when nothing is left.
pub(super) fn remove(text: &str, key: &str, value: &str) -> anyhow::Result<String> {
    let mut object = parse(text)?;
    let Some(Value::Array(array)) = object.get_mut(key) else { return Ok(text.to_owned()) };
    let Some(at) = array.iter().position(|item| item == value) else { return Ok(text.to_owned()) };
    array.remove(at);
    let is_last = array.is_empty();
    let changed = if is_last {
        object.remove(key);
        let open = text.find('{').context("no object")?;
        let (item, _) = member(text, key)?.context("no such key")?;
        cut(text, &items(text, open), item)
    } else {
        let (_, open) = member(text, key)?.context("no such key")?;
        cut(text, &items(text, open), at)
    };
    ensure!(parse(&changed)? == object, "it cannot be edited: take {value:?} out of {key} by hand");
    Ok(if object.is_empty() { String::new() } else { changed })
}

fn parse(text: &str) -> anyhow::Result<Map<String, Value>> {
    match serde_json::from_str(text).context("it is not valid JSON")? {
        Value::Object(object) => Ok(object),
        _ => bail!("it is not a JSON object"),
    }
}

fn insert(text: &str, at: usize, what: &str) -> String {
    let (head, tail) = text.split_at_checked(at).unwrap_or((text, ""));
    format!("{head}{what}{tail}")
}

/// The text without the item `at` and one comma.
fn cut(text: &str, items: &[Range<usize>], at: usize) -> String {
    let Some(item) = items.get(at) else { return text.to_owned() };
    let range = match (items.get(at + 1), at.checked_sub(1).and_then(|before| items.get(before))) {
        (Some(next), _) => item.start..next.start,
        (None, Some(before)) => before.end..item.end,
        (None, None) => item.clone(),
    };
    format!("{}{}", text.get(..range.start).unwrap_or_default(), text.get(range.end..).unwrap_or_default())
}

/// Which item of the object the member `key` is, and where its array opens.
fn member(text: &str, key: &str) -> anyhow::Result<Option<(usize, usize)>> {
    let open = text.find('{').context("no object")?;
    for (at, item) in items(text, open).into_iter().enumerate() {
        let member = text.get(item.clone()).unwrap_or_default();
        let mut keys = serde_json::Deserializer::from_str(member).into_iter::<String>();
        if matches!(keys.next(), Some(Ok(name)) if name == key) {
            let value = keys.byte_offset();
            let bracket = member.get(value..).and_then(|rest| rest.find('['));
            return Ok(bracket.map(|bracket| (at, item.start + value + bracket)));
        }
    }
    Ok(None)
}

/// The items of the array or object that opens at `open` in valid JSON, without the space around them.
fn items(text: &str, open: usize) -> Vec<Range<usize>> {
    let (mut items, mut depth, mut start, mut in_text, mut escaped) =
        (Vec::new(), 0_usize, open + 1, false, false);
    let mut push = |range: Range<usize>| {
        let item = text.get(range.clone()).unwrap_or_default();
        let lead = item.len() - item.trim_start().len();
        if !item.trim().is_empty() {
            items.push(range.start + lead..range.start + lead + item.trim().len());
        }
    };
    for (at, byte) in text.bytes().enumerate().skip(open) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            _ if in_text => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    push(start..at);
                    break;
                }
            }
            b',' if depth == 1 => {
                push(start..at);
                start = at + 1;
            }
            _ => {}
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: &str = "registry-mirrors";
    const MIRROR: &str = "http://127.0.0.1:5001";

    #[test]
    fn in_and_out_again() {
        for text in [
            "{}",
            "{ }\n",
            "{\n\t\"debug\": true\n}",
            "{\"z\": {\"registry-mirrors\": [1]}, \"a\": \"},\\\"[{\"}",
            "{\"registry-mirrors\": [ \"https://x\" ], \"b\" : 1 }",
            "{\"b\": 1,\n \"registry-mirrors\" :\n[\n\"https://x\",\n\"https://y\"]}",
        ] {
            let added = add_first(text, KEY, MIRROR).unwrap().unwrap();
            assert_eq!(parse(&added).unwrap()[KEY][0], MIRROR, "{added}");
            assert_eq!(add_first(&added, KEY, MIRROR).unwrap(), None);
            let back = remove(&added, KEY, MIRROR).unwrap();
            if back.is_empty() {
                assert_eq!(text.trim().replace(' ', ""), "{}");
            } else {
                assert_eq!(parse(&back).unwrap(), parse(text).unwrap(), "{back}");
            }
        }
        assert_eq!(remove(&add_first("", KEY, MIRROR).unwrap().unwrap(), KEY, MIRROR).unwrap(), "");
    }

    #[test]
    fn the_rest_of_the_file_is_as_it_was() {
        let text =
            "{\n\t\"zeta\":  1,\n\t\"registry-mirrors\": [\"https://x\"],\n\t\"alpha\": {\"b\":2}\n}\n";
        let added = add_first(text, KEY, MIRROR).unwrap().unwrap();
        assert_eq!(added, text.replace("[", &format!("[\"{MIRROR}\", ")));
        assert_eq!(remove(&added, KEY, MIRROR).unwrap(), text);
    }

    #[test]
    fn what_cannot_be_edited_is_an_error() {
        for text in ["{", "[]", "{\"registry-mirrors\": \"x\"}", "{\"a\": 1,}"] {
            assert!(add_first(text, KEY, MIRROR).is_err(), "{text}");
        }
        // The second of two equal keys is the one that counts; the first would be edited.
        let twice = "{\"registry-mirrors\": [\"a\"], \"registry-mirrors\": [\"b\"]}";
        assert!(add_first(twice, KEY, MIRROR).is_err());
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            ".{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(".{0,4}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_else_is_in_the_file(
            mut object in prop::collection::btree_map(".{0,6}", any_json(), 0..4),
            mirrors in prop::option::of(prop::collection::vec(".{0,6}", 0..3)),
            pretty: bool,
        ) {
            if let Some(mirrors) = &mirrors {
                object.insert(KEY.to_owned(), Value::from(mirrors.clone()));
            }
            let before: Map<String, Value> = object.into_iter().collect();
            let text = if pretty { serde_json::to_string_pretty(&before) } else { serde_json::to_string(&before) };
            let added = add_first(&text.unwrap(), KEY, MIRROR).unwrap().unwrap();
            let back = remove(&added, KEY, MIRROR).unwrap();
            let mut expected = before;
            if mirrors.is_some_and(|mirrors| mirrors.is_empty()) {
                expected.remove(KEY);
            }
            if expected.is_empty() {
                prop_assert_eq!(back, "");
            } else {
                prop_assert_eq!(parse(&back).unwrap(), expected);
            }
        }
    }
}
