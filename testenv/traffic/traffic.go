package traffic

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
)

// Family is a kind of traffic.
type Family struct {
	Name string

	// Conversations begin at gaps of a gamma distribution. Their rate goes up and down like a sine.
	Burst  float64 // coefficient of variation of the gaps; 1 is a Poisson process, 0 a clock
	Swing  float64 // by which part of the mean rate it differs at most
	Period float64 // seconds

	// A conversation is of one of Tenants, the first of which has the most: in proportion to 1/rank^Skew.
	Tenants int
	Skew    float64

	// Its prompts begin with one of Systems instructions, which others share; 0: with none.
	Systems    int
	SystemSkew float64
	System     Dist // tokens

	First  Dist // tokens of the first message
	Next   Dist // tokens of each later message of the client
	Output Dist // tokens of an answer
	Turns  Dist // requests of a conversation
	Think  Dist // seconds from an answer to the next request

	// A part Branch of the answers is followed by a second conversation too, which begins with all that was said.
	Branch      float64
	BranchTurns Dist
}

// Request is one turn of a conversation.
type Request struct {
	At           float64 // seconds from the start, if answers take as long as Nominal says
	After        int     // index of the request whose answer it follows; -1: of none, so that At is its time
	Think        float64 // seconds from that answer
	Conversation int
	Tenant       int
	Prompt       []Message // the first may be of a system; then client and answers alternate, and the last is the client's
	Output       int       // tokens
}

// Message is a part of a prompt. Two with the same ID are the same text.
type Message struct {
	ID     uint64
	Tokens int
	Role   Role
}

// Role is whose message it is.
type Role string

const (
	System    Role = "system"
	User      Role = "user"
	Assistant Role = "assistant"
)

// Input is the number of tokens of the prompt.
func (r *Request) Input() (n int) {
	for _, m := range r.Prompt {
		n += m.Tokens
	}
	return n
}

// Nominal is how many seconds an answer takes where nothing is known: what At is made of.
func Nominal(output int) float64 { return 0.5 + 0.02*float64(output) }

// Generate makes the requests whose At is between 0 and duration, in its order. rate is how many conversations begin in a
// second, without branches. The traffic is stationary: the first requests continue conversations that began before, and so
// do not have an After, and those at the end are not the last of theirs.
func (f Family) Generate(seed uint64, rate, duration float64) []Request {
	g := generator{Family: f, rng: rand.New(rand.NewPCG(seed, 0x74726166666963)), duration: duration}
	tenants, systems := newZipf(f.Tenants, f.Skew), newZipf(f.Systems, f.SystemSkew)
	for range f.Systems {
		g.systems = append(g.systems, g.message(System, f.System))
	}
	phase := g.rng.Float64()
	for t := -f.lasts(); ; {
		now := rate
		if f.Swing > 0 {
			now *= 1 + f.Swing*math.Sin(2*math.Pi*(t/f.Period+phase))
		}
		if t += gamma(g.rng, f.Burst) / now; t >= duration {
			break
		}
		r := Request{At: t, After: -1, Tenant: tenants.draw(g.rng)}
		if f.Systems > 0 {
			r.Prompt = append(r.Prompt, g.systems[systems.draw(g.rng)])
		}
		r.Prompt = append(r.Prompt, g.message(User, f.First))
		g.converse(r, f.Turns.tokens(g.rng), true)
	}
	return g.inOrder()
}

// lasts is how many seconds all but one conversation in a hundred last.
func (f *Family) lasts() float64 {
	turns := f.Turns.Median * math.Exp(2.33*f.Turns.Sigma)
	if f.Turns.Max > 0 {
		turns = min(turns, f.Turns.Max)
	}
	return turns * (f.Think.mean() + Nominal(int(f.Output.mean())))
}

// generator makes the requests of one call of Generate.
type generator struct {
	Family
	rng           *rand.Rand
	duration      float64
	systems       []Message
	messages      uint64
	conversations int
	all           []Request
}

func (g *generator) message(of Role, length Dist) Message {
	g.messages++
	return Message{g.messages, length.tokens(g.rng), of}
}

// converse makes the requests of a conversation from its first one on.
func (g *generator) converse(r Request, turns int, branches bool) {
	r.Conversation = g.conversations
	g.conversations++
	for turn := range turns {
		r.Output = g.Output.tokens(g.rng)
		if r.At >= g.duration {
			return
		}
		at := r.After
		if r.After = -1; r.At >= 0 {
			if at >= 0 && g.all[at].At >= 0 {
				r.After = at
			}
		}
		this := len(g.all)
		g.all = append(g.all, r)
		g.messages++
		said := append(r.Prompt, Message{g.messages, r.Output, Assistant})
		next := func(said []Message) Request {
			n := r
			n.Think = g.Think.draw(g.rng)
			n.After, n.At = this, r.At+Nominal(r.Output)+n.Think
			n.Prompt = append(said, g.message(User, g.Next))
			return n
		}
		if branches && turn < turns-1 && g.rng.Float64() < g.Branch {
			g.converse(next(slices.Clone(said)), g.BranchTurns.tokens(g.rng), false)
		}
		r = next(said)
	}
}

// inOrder returns the requests of the duration in the order of their times.
func (g *generator) inOrder() []Request {
	order := make([]int, 0, len(g.all))
	for i := range g.all {
		if g.all[i].At >= 0 {
			order = append(order, i)
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(g.all[a].At, g.all[b].At) })
	to := make(map[int]int, len(order))
	rs := make([]Request, 0, len(order))
	for i, from := range order {
		to[from] = i
		r := g.all[from]
		if r.After >= 0 {
			r.After = to[r.After]
		}
		rs = append(rs, r)
	}
	return rs
}
