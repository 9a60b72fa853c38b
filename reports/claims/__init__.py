"""Claims from their files, judged by estimators."""
