"""Fine-tune the teacher LLM, audit it, cache its targets, distil the student and train its control arms."""
