//! A DNS query, and what is seen of an answer.
#![no_main]

use covisor::net::nat::dns::Query;
use covisor::net::nat::dns::answer_id;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = answer_id(data);
    if let Some(query) = Query::parse(data) {
        let failure = query.failure();
        assert!(failure.len() <= data.len());
        assert_eq!(answer_id(&failure), Some(query.id));
        assert_eq!(Query::parse(&failure), None);
    }
});
