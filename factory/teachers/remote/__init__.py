"""Teachers behind an endpoint: any that speaks OpenAI's chat completions, and Gemini's.

pace        how many requests at once, when the next: a value that a clock drives
purse       what was used and what it costs, in usage.jsonl beside the rows
schemas     a task's schema in what each dialect can say
read        answers as rows: reasoning, ids, distributions
openai, gemini    what is sent, and what of it comes back
transport   HTTP and its faults
probe       what an endpoint can do, asked before anything is spent
batches     files of requests, answered within a day
teacher     the loop that asks, in a thread of its own
"""
