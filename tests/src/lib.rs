//! The lab: hosts in network namespaces, programs in them, and what they saw.
