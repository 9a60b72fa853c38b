"""The doors gefen-report and gefen-claims, and the pages that they write."""
