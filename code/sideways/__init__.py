"""The book's machinery: records, experiments, figures, and what moves in its pages."""
