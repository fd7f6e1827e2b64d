"""What people read: figures, sentences and `report.html`, made from stored results alone."""
