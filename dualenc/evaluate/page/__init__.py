"""The report: report.json and one self-contained page, its figures and words, and what the numbers were made of."""
