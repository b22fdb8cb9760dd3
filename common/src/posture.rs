//! What is required of a device, and what is known of it.
