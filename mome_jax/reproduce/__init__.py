"""The paper's experiment as one road: from the downloads of its datasets to its tables."""
