use std::{collections::BTreeMap, fs};

use super::*;

/// A value in MaxMind's format: <https://maxmind.github.io/MaxMind-DB/>.
enum Value {
    Text(&'static str),
    Short(u16),
    Number(u32),
    Long(u64),
    Map(Vec<(&'static str, Value)>),
    List(Vec<Value>),
}

impl Value {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Text(text) => {
                control(2, text.len(), out);
                out.extend(text.bytes());
            }
            Self::Short(number) => {
                control(5, 2, out);
                out.extend(number.to_be_bytes());
            }
            Self::Long(number) => {
                control(9, 8, out);
                out.extend(number.to_be_bytes());
            }
            Self::Number(number) => {
                control(6, 4, out);
                out.extend(number.to_be_bytes());
            }
            Self::Map(entries) => {
                control(7, entries.len(), out);
                for (key, value) in entries {
                    Self::Text(key).write(out);
                    value.write(out);
                }
            }
            Self::List(values) => {
                control(11, values.len(), out);
                values.iter().for_each(|value| value.write(out));
            }
        }
    }
}

fn control(kind: u8, size: usize, out: &mut Vec<u8>) {
    assert!(size < 29, "longer ones need more bytes");
    match kind {
        1..=7 => out.push(kind << 5 | size as u8),
        _extended => out.extend([size as u8, kind - 7]),
    }
}

/// Makes a file that knows the first octets of some IPv4 networks (`/8`).
fn map_of(kind: &'static str, entries: &[(u8, Value)]) -> Vec<u8> {
    let mut data = Vec::new();
    let mut leaves = BTreeMap::new();
    for (octet, value) in entries {
        leaves.insert(*octet, data.len());
        value.write(&mut data);
    }
    // A search tree of eight bits; `None` is a place that is not known.
    #[derive(Clone, Copy)]
    enum Next {
        Node(usize),
        Data(usize),
        Nothing,
    }
    let mut nodes = vec![[Next::Nothing; 2]];
    for (octet, offset) in leaves {
        let mut node = 0;
        for bit in (0..8).rev().map(|shift| usize::from(octet >> shift & 1)).enumerate() {
            let (depth, bit) = bit;
            if depth == 7 {
                nodes[node][bit] = Next::Data(offset);
                break;
            }
            node = match nodes[node][bit] {
                Next::Node(next) => next,
                Next::Data(_) | Next::Nothing => {
                    nodes.push([Next::Nothing; 2]);
                    let next = nodes.len() - 1;
                    nodes[node][bit] = Next::Node(next);
                    next
                }
            };
        }
    }
    let count = nodes.len();
    let mut file = Vec::new();
    for next in nodes.into_iter().flatten() {
        let record = match next {
            Next::Node(node) => node,
            Next::Nothing => count,
            Next::Data(offset) => count + 16 + offset,
        };
        file.extend(&(record as u32).to_be_bytes()[1..]);
    }
    file.extend([0; 16]);
    file.extend(data);
    file.extend(b"\xab\xcd\xefMaxMind.com");
    Value::Map(vec![
        ("node_count", Value::Number(count as u32)),
        ("record_size", Value::Short(24)),
        ("ip_version", Value::Short(4)),
        ("database_type", Value::Text(kind)),
        ("languages", Value::List(vec![])),
        ("binary_format_major_version", Value::Short(2)),
        ("binary_format_minor_version", Value::Short(0)),
        ("build_epoch", Value::Long(1)),
        ("description", Value::Map(vec![])),
    ])
    .write(&mut file);
    file
}

fn country(code: &'static str) -> Value {
    Value::Map(vec![("country", Value::Map(vec![("iso_code", Value::Text(code))]))])
}

fn files(folder: &Path) -> PlaceFiles {
    PlaceFiles { country: Some(folder.join("country.mmdb")), asn: Some(folder.join("asn.mmdb")) }
}

#[test]
fn the_maps_tell_country_and_system_and_nothing_of_what_they_do_not_know() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = files(folder.path());
    let countries = map_of("Country", &[(203, country("DE")), (198, country("XXL"))]);
    fs::write(files.country.as_ref().expect("a path"), countries).expect("written");
    let asn = Value::Map(vec![("autonomous_system_number", Value::Number(64_500))]);
    fs::write(files.asn.as_ref().expect("a path"), map_of("ASN", &[(203, asn)])).expect("written");
    let maps = Maps::read(&files).expect("both are maps");
    let place = |address: &str| maps.place_of(address.parse().expect("an address")).to_string();
    assert_eq!(place("203.0.113.7"), "DE, AS64500");
    assert_eq!(place("::ffff:203.0.113.7"), "DE, AS64500");
    assert_eq!(place("192.0.2.1"), "an unknown place");
    assert_eq!(place("198.51.100.1"), "an unknown place", "not a country");
    assert_eq!(place("2001:db8::1"), "an unknown place");
}

#[test]
fn a_file_that_is_no_map_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = files(folder.path());
    fs::write(files.country.as_ref().expect("a path"), b"not a map").expect("written");
    let error = Maps::read(&files).err().expect("it is refused").to_string();
    assert!(error.contains("country.mmdb"), "{error}");
    let missing = PlaceFiles { country: None, ..files };
    assert!(Maps::read(&missing).err().expect("it is not there").to_string().contains("asn.mmdb"));
}
