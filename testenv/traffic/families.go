package traffic

// Families are the kinds of traffic. Each comment has the published figures that the parameters are fitted to; the tests of the
// package have what the traffic then shows.
func Families() []Family {
	return []Family{Chat(), LongPrompts(), Reasoning(), Agents(), LongTail(), HotPrompt()}
}

// Chat is what an assistant gets. Azure 2023, conversation: prompts with a median of 1 020 tokens and a p99 of 4 000, answers
// with 129 and 600. ServeGen: 3.5 turns in a conversation, about 100 s apart; a few of the tenants have most requests.
func Chat() Family {
	return Family{
		Name: "chat", Burst: 1.5, Swing: 0.2, Period: 300, Tenants: 50, Skew: 1.1,
		Systems: 20, SystemSkew: 1, System: Dist{Median: 220, Sigma: 0.4, Max: 600},
		First: Dist{Median: 250, Sigma: 1, Min: 8, Max: 8000}, Next: Dist{Median: 90, Sigma: 1.1, Min: 4, Max: 4000},
		Output: Dist{Median: 140, Sigma: 0.85, Min: 2, Max: 1000},
		Turns:  Dist{Median: 2.6, Sigma: 0.8, Min: 1, Max: 20}, Think: Dist{Median: 50, Sigma: 1, Min: 2, Max: 600},
	}
}

// LongPrompts are conversations about long documents. Mooncake's conversation trace: prompts with a median of 6 900 tokens, a
// p95 of 39 500 and a mean of 12 000, 37 % of their tokens in an earlier turn, and answers with a mean of 343.
func LongPrompts() Family {
	return Family{
		Name: "long prompts", Burst: 1.3, Swing: 0.2, Period: 300, Tenants: 30, Skew: 1.1,
		First: Dist{Median: 4900, Sigma: 1.15, Min: 100, Max: 120_000}, Next: Dist{Median: 1600, Sigma: 1.15, Min: 10, Max: 60_000},
		Output: Dist{Median: 250, Sigma: 0.8, Min: 2, Max: 2000},
		Turns:  Dist{Median: 1.25, Sigma: 0.7, Min: 1, Max: 12}, Think: Dist{Median: 40, Sigma: 1, Min: 2, Max: 400},
	}
}

// Reasoning has answers that are mostly thoughts. ServeGen: a median of 460 tokens, a p99 of 7 000.
func Reasoning() Family {
	return Family{
		Name: "reasoning", Burst: 1.2, Swing: 0.1, Period: 300, Tenants: 30, Skew: 1.1,
		First: Dist{Median: 500, Sigma: 1.1, Min: 10, Max: 16_000}, Next: Dist{Median: 150, Sigma: 1, Min: 4, Max: 4000},
		Output: Dist{Median: 460, Sigma: 1.17, Min: 10, Max: 16_000},
		Turns:  Dist{Median: 1.5, Sigma: 0.6, Min: 1, Max: 10}, Think: Dist{Median: 60, Sigma: 0.8, Min: 5, Max: 400},
	}
}

// Agents call the model 50 to 150 times each, with what a tool has said in a few seconds; their prompts begin with the same
// instructions, and now and then one hands a part of its work to another that knows the same. Mooncake's trace of tools and
// agents: a mean prompt of 8 600 tokens, of which 59 % are in an earlier one, and answers with a mean of 182. There the calls
// of one agent are seldom all in the trace; here they are.
func Agents() Family {
	return Family{
		Name: "agents", Burst: 1, Tenants: 20, Skew: 1,
		Systems: 4, SystemSkew: 1, System: Dist{Median: 4000, Sigma: 0.2, Max: 8000},
		First: Dist{Median: 600, Sigma: 0.8, Min: 20, Max: 8000}, Next: Dist{Median: 130, Sigma: 1.2, Min: 4, Max: 8000},
		Output: Dist{Median: 110, Sigma: 0.9, Min: 5, Max: 2000},
		Turns:  Dist{Median: 90, Sigma: 0.3, Min: 50, Max: 150}, Think: Dist{Median: 0.8, Sigma: 1.2, Min: 0.002, Max: 60},
		Branch: 0.01, BranchTurns: Dist{Median: 10, Sigma: 0.5, Min: 3, Max: 40},
	}
}

// LongTail is short chat of which one prompt in 50 has 60 000 to 120 000 tokens: the shape of Azure 2024's long tail.
func LongTail() Family {
	f := Chat()
	f.Name = "long tail"
	f.Systems = 0
	f.First.Tail, f.First.TailFrom, f.First.Alpha, f.First.Max = 0.02, 60_000, 2, 120_000
	return f
}

// HotPrompt is an application: nearly all prompts begin with the same long instructions, and a question follows.
func HotPrompt() Family {
	return Family{
		Name: "hot prompt", Burst: 2, Swing: 0.3, Period: 200, Tenants: 10, Skew: 1,
		Systems: 5, SystemSkew: 3.5, System: Dist{Median: 6000, Min: 6000, Max: 6000},
		First: Dist{Median: 120, Sigma: 0.9, Min: 4, Max: 2000}, Next: Dist{Median: 60, Sigma: 0.9, Min: 4, Max: 2000},
		Output: Dist{Median: 90, Sigma: 0.8, Min: 2, Max: 800},
		Turns:  Dist{Median: 1.1, Sigma: 0.5, Min: 1, Max: 6}, Think: Dist{Median: 30, Sigma: 0.8, Min: 2, Max: 200},
	}
}
