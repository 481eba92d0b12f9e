"""What people see of a comparison: tables and a page."""
