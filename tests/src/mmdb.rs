//! Maps of places for tests: files in MaxMind's format that know single addresses.
//!
//! Format: <https://maxmind.github.io/MaxMind-DB/>, version 2.0, records of 32 bits. IPv4 addresses stand below `::/96`, as in the real files.

use std::net::IpAddr;

/// What a file knows of an address.
#[derive(Debug, Clone, Copy)]
pub enum Known {
    /// Its country, by its two letters.
    Country(&'static str),
    /// The number of the autonomous system that announces it.
    AutonomousSystem(u32),
}

/// A value of the data section.
enum Value<'a> {
    Text(&'a str),
    Short(u16),
    Number(u32),
    Long(u64),
    Map(Vec<(&'a str, Value<'a>)>),
    List,
}

impl Value<'_> {
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
            Self::Long(number) => {
                control(9, 8, out);
                out.extend(number.to_be_bytes());
            }
            Self::List => control(11, 0, out),
        }
    }
}

/// Begins a value: its type and size. Types above seven are extended ones.
fn control(kind: u8, size: usize, out: &mut Vec<u8>) {
    assert!(size < 29, "a longer one needs more bytes");
    let size = u8::try_from(size).expect("it is below 29");
    match kind {
        1..=7 => out.push(kind << 5 | size),
        _extended => out.extend([size, kind - 7]),
    }
}

#[derive(Clone, Copy)]
enum Next {
    Node(usize),
    Data(usize),
    Nothing,
}

/// Makes a file that knows these addresses and nothing else.
///
/// # Panics
/// Panics where a map has more than 2^32 bytes.
pub fn map_of(entries: &[(IpAddr, Known)]) -> Vec<u8> {
    let mut data = Vec::new();
    let mut nodes = vec![[Next::Nothing; 2]];
    for (address, known) in entries {
        let offset = data.len();
        match known {
            Known::Country(code) => {
                let country = Value::Map(vec![("iso_code", Value::Text(code))]);
                Value::Map(vec![("country", country)]).write(&mut data);
            }
            Known::AutonomousSystem(number) => {
                Value::Map(vec![("autonomous_system_number", Value::Number(*number))]).write(&mut data);
            }
        }
        insert(&mut nodes, *address, offset);
    }
    let count = nodes.len();
    let mut file = Vec::new();
    for next in nodes.into_iter().flatten() {
        let record = match next {
            Next::Node(node) => node,
            Next::Nothing => count,
            Next::Data(offset) => count + 16 + offset,
        };
        file.extend(u32::try_from(record).expect("a small map").to_be_bytes());
    }
    file.extend([0; 16]);
    file.extend(data);
    file.extend(b"\xab\xcd\xefMaxMind.com");
    Value::Map(vec![
        ("node_count", Value::Number(u32::try_from(count).expect("a small map"))),
        ("record_size", Value::Short(32)),
        ("ip_version", Value::Short(6)),
        ("database_type", Value::Text("Lab")),
        ("languages", Value::List),
        ("binary_format_major_version", Value::Short(2)),
        ("binary_format_minor_version", Value::Short(0)),
        ("build_epoch", Value::Long(1)),
        ("description", Value::Map(vec![])),
    ])
    .write(&mut file);
    file
}

fn insert(nodes: &mut Vec<[Next; 2]>, address: IpAddr, offset: usize) {
    let bits = match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    };
    let mut node = 0;
    for depth in (0..128).rev() {
        let bit = usize::from(bits >> depth & 1 == 1);
        if depth == 0 {
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
