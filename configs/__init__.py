"""What can be set, and how it is read. Depends on nothing else of Lorikeet's."""
