"""Time and memory of reading and answering, beside what the machine could do at best."""
