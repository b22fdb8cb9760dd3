#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| postern_node::agent::fuzzing::fuzz_link(bytes));
