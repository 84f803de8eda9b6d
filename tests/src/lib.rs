//! Packets through the real program: tables of cases and their comparison.
