#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| postern_node::host::dns::fuzzing::fuzz_exchange(bytes));
