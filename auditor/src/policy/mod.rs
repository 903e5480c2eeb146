//! Policies: which destinations an agent may reach.
