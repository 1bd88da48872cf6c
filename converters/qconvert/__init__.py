"""Files and ecosystems that hold packed weights: open, plan, convert, prove."""
