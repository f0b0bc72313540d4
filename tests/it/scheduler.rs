//! The scheduler on paper: text-file cases, and properties under random schedules.
