package policy

import (
	"testing"
	"time"
)

func TestAwait(t *testing.T) {
	const ms, s = time.Millisecond, time.Second
	for what, c := range map[string]struct {
		prompt Prompt
		want   Awaited
	}{
		"nothing is measured":                    {Prompt{Input: 100}, Awaited{}},
		"a whole answer, and nothing measured":   {Prompt{Input: 100, Whole: true, Seen: 10}, Awaited{}},
		"a stream":                               {Prompt{Input: 100, Took: 300 * ms}, Awaited{300 * ms, 600 * ms, 600 * ms, 600 * ms, 1200 * ms, false}},
		"a stream behind others":                 {Prompt{Input: 100, Took: 300 * ms, Before: 9 * s}, Awaited{300 * ms, 600 * ms, 600 * ms, 600 * ms, 19200 * ms, false}},
		"a long prompt, others were cached":      {Prompt{Input: 100_000, Took: 100 * ms}, Awaited{100 * ms, 400 * s, 400 * s, 400 * s, 800 * s, false}},
		"a load that is not reported":            {Prompt{Input: 100, Took: 300 * ms, MayLoad: true}, Awaited{300 * ms, 60 * s, 60 * s, 60 * s, 120 * s, false}},
		"an embedding":                           {Prompt{Input: 10, Took: 20 * ms, Whole: true}, Awaited{20 * ms, 40 * ms, 40 * ms, 40 * ms, 80 * ms, false}},
		"a whole answer without a bound":         {Prompt{Input: 10, Whole: true, Seen: 50, Token: 10 * ms}, Awaited{500 * ms, 40 * ms, 4 * s, 20520 * ms, 20560 * ms, false}},
		"one where answers were long":            {Prompt{Whole: true, Took: s, Seen: 1000, Token: 10 * ms}, Awaited{11 * s, 2 * s, 42 * s, 82 * s, 84 * s, false}},
		"a whole answer with a bound":            {Prompt{Input: 10, Whole: true, Most: 20, Seen: 500, Token: 10 * ms}, Awaited{200 * ms, 40 * ms, 440 * ms, 440 * ms, 480 * ms, false}},
		"one with a bound that is never reached": {Prompt{Input: 10, Whole: true, Most: 4096, Seen: 50, Token: 10 * ms}, Awaited{500 * ms, 40 * ms, 81960 * ms, 81960 * ms, 82 * s, false}},
	} {
		if got := Await(c.prompt); got != c.want {
			t.Errorf("%s: %v, want %v", what, got, c.want)
		}
	}
}

func TestAwaitedTogether(t *testing.T) {
	a, b := Awaited{1, 6, 3, 7, 2, false}, Awaited{4, 2, 5, 8, 1, false}
	if got := a.With(b); got != (Awaited{4, 6, 5, 8, 2, false}) {
		t.Errorf("%v, want the longer times", got)
	}
	if got := a.With(Awaited{}); got != (Awaited{}) {
		t.Errorf("%v with a request of which nothing is known, want nothing known", got)
	}
}

func TestVitality(t *testing.T) {
	const ms, s = time.Millisecond, time.Second
	quick := Awaited{Expected: 100 * ms, Prompt: 200 * ms, Typical: 200 * ms, Surely: 200 * ms, Longest: 400 * ms}
	cached := Awaited{Expected: 100 * ms, Prompt: 60 * s, Typical: 60 * s, Surely: 60 * s, Longest: 120 * s} // a long prompt; those before it were cached
	slow := Awaited{Expected: 20 * s, Prompt: 40 * s, Typical: 40 * s, Surely: 40 * s, Longest: 80 * s}
	whole := Awaited{Expected: 100 * ms, Prompt: 40 * ms, Typical: 4 * s, Surely: 60 * s, Longest: 120 * s} // an answer that does not stream, and may be long
	for what, c := range map[string]struct {
		signs Signs
		want  Vitality
	}{
		"nothing waits": {Signs{Silent: time.Hour, Mute: time.Hour}, Working},

		"nothing is known":                       {Signs{Waiting: 1, Silent: 5 * s}, Working},
		"nothing is known for long":              {Signs{Waiting: 1, Silent: time.Hour, Open: true, Probe: time.Hour}, Suspect},
		"a model loads":                          {Signs{Waiting: 1, Awaited: Awaited{Loads: true}, Silent: time.Hour}, Working},
		"a model loads, and others wait":         {Signs{Waiting: 4, Awaited: quick.With(Awaited{Loads: true}), Silent: time.Hour}, Working},
		"nothing is known, and mute":             {Signs{Waiting: 1, Silent: time.Hour, Mute: 29 * s}, Suspect},
		"nothing is known, and mute for long":    {Signs{Waiting: 1, Silent: time.Hour, Mute: 31 * s}, Frozen},
		"nothing is known, mute, but it answers": {Signs{Waiting: 1, Silent: s, Mute: 31 * s}, Working},

		"within its time":             {Signs{Waiting: 1, Awaited: quick, Silent: 1200 * ms, Open: true}, Working},
		"beyond":                      {Signs{Waiting: 1, Awaited: quick, Silent: 1201 * ms, Open: true}, Suspect},
		"beyond, it may be long":      {Signs{Waiting: 1, Awaited: whole, Silent: 1201 * ms, Open: true}, Doubtful},
		"the probe is late":           {Signs{Waiting: 1, Awaited: whole, Silent: 2 * s, Open: true, Probe: 501 * ms}, Suspect},
		"beyond, its queue is full":   {Signs{Waiting: 1, Awaited: quick, Silent: 1201 * ms}, Suspect},
		"the probe has time":          {Signs{Waiting: 1, Awaited: quick, Silent: 3 * s, Open: true, Probe: s}, Suspect},
		"the probe has no answer":     {Signs{Waiting: 1, Awaited: quick, Silent: 3 * s, Open: true, Probe: 1001 * ms}, Hung},
		"the probe waits":             {Signs{Waiting: 1, Awaited: quick, Silent: 3 * s, Probe: 2 * s}, Suspect},
		"the probe was answered":      {Signs{Waiting: 1, Awaited: quick, Silent: 3 * s, Open: true, Answered: 1500 * ms}, Working},
		"but long ago":                {Signs{Waiting: 1, Awaited: quick, Silent: 3001 * ms, Open: true, Answered: 1500 * ms}, Suspect},
		"the longest time is over":    {Signs{Waiting: 1, Awaited: quick, Silent: 10001 * ms}, Hung},
		"it was, but it is answering": {Signs{Waiting: 1, Awaited: quick, Silent: 10001 * ms, Answered: 6 * s}, Working},

		"mute":                    {Signs{Waiting: 1, Awaited: quick, Silent: 1201 * ms, Mute: s}, Frozen},
		"mute, within its time":   {Signs{Waiting: 1, Awaited: quick, Silent: 1100 * ms, Mute: s}, Working},
		"a whole answer, mute":    {Signs{Waiting: 1, Awaited: whole, Silent: 50 * s, Mute: 49 * s}, Working},
		"mute as it never was":    {Signs{Waiting: 1, Awaited: whole, Silent: 5001 * ms, Mute: 4 * s, Attentive: true}, Frozen},
		"the same, typical":       {Signs{Waiting: 1, Awaited: whole, Silent: 5 * s, Mute: 4 * s, Attentive: true}, Working},
		"late with one page":      {Signs{Waiting: 1, Awaited: quick, Silent: 1201 * ms, Mute: 500 * ms, Open: true}, Suspect},
		"it was mute until now":   {Signs{Waiting: 1, Awaited: quick, Silent: time.Minute, Recovers: true, Open: true}, Working},
		"mute for long":           {Signs{Waiting: 1, Awaited: slow, Silent: 42 * s, Mute: 41 * s}, Frozen},
		"mute with a long prompt": {Signs{Waiting: 1, Awaited: slow, Silent: 40 * s, Mute: 39 * s}, Working},

		"a prompt that is not cached":            {Signs{Waiting: 1, Awaited: cached, Silent: 50 * s}, Working},
		"a prompt that is not cached, mute":      {Signs{Waiting: 1, Awaited: cached, Silent: 50 * s, Mute: 49 * s}, Working},
		"several, which may be long":             {Signs{Waiting: 3, Awaited: cached, Silent: 2 * s}, Suspect},
		"one longer than 2 ms a token":           {Signs{Waiting: 1, Awaited: cached, Silent: 62 * s}, Suspect},
		"one longer than 2 ms a token, mute":     {Signs{Waiting: 1, Awaited: cached, Silent: 62 * s, Mute: 60 * s}, Frozen},
		"one that a probe waits behind":          {Signs{Waiting: 1, Awaited: cached, Silent: 59 * s, Open: true, Probe: 50 * s}, Working},
		"a slow engine within twice its time":    {Signs{Waiting: 1, Awaited: slow, Silent: 40 * s, Open: true}, Working},
		"a probe of a slow one has as much time": {Signs{Waiting: 1, Awaited: slow, Silent: 79 * s, Open: true, Probe: 38 * s}, Suspect},

		"idle before": {Signs{Waiting: 1, Awaited: quick, Idle: time.Hour, Silent: 25 * s, Mute: 3 * s, Open: true}, Working},
		"idle before, and silent for half a minute": {Signs{Waiting: 1, Awaited: quick, Idle: time.Hour, Silent: 31 * s, Open: true}, Hung},
	} {
		if got := c.signs.Vitality(); got != c.want {
			t.Errorf("%s: %v, want %v", what, got, c.want)
		}
	}
}

func TestLate(t *testing.T) {
	a := Awaited{Expected: time.Second, Longest: 4 * time.Second}
	for waited, want := range map[time.Duration]bool{time.Second: false, 7 * time.Second: false, 7*time.Second + 1: true} {
		if got := a.Late(waited); got != want {
			t.Errorf("late after %v: %v", waited, got)
		}
	}
	if (Awaited{}).Late(time.Minute) || !(Awaited{}).Late(time.Minute+1) {
		t.Error("a request of which nothing is known is late after a minute")
	}
	if (Awaited{Loads: true}).Late(time.Hour) {
		t.Error("a request that waits for a load is late")
	}
}

func TestMayMove(t *testing.T) {
	for _, c := range []struct {
		moving, running int
		want            bool
	}{{0, 1, true}, {1, 1, false}, {0, 0, true}, {1, 39, false}, {1, 40, true}, {4, 100, true}, {5, 100, false}} {
		if got := MayMove(c.moving, c.running); got != c.want {
			t.Errorf("with %d moving of %d: %v", c.moving, c.running, got)
		}
	}
}

func TestProbeTimeGrows(t *testing.T) {
	for n, want := range []time.Duration{2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 30 * time.Second, 30 * time.Second} {
		if got := ProbeTime(n, 100*time.Millisecond); got != want {
			t.Errorf("after %d: %v, want %v", n, got, want)
		}
	}
	if got := ProbeTime(0, 20*time.Second); got != 81*time.Second {
		t.Errorf("of a slow engine: %v, want 81s", got)
	}
}

// What an engine is used to, what others wait for and what it does for other models delay the verdict.
func TestVitalityInContext(t *testing.T) {
	const ms, s = time.Millisecond, time.Second
	quick := Awaited{Expected: 100 * ms, Prompt: 200 * ms, Typical: 200 * ms, Surely: 200 * ms, Longest: 400 * ms}
	token := AwaitToken(10 * ms)
	for what, c := range map[string]struct {
		signs Signs
		want  Vitality
	}{
		"it was as silent before":                  {Signs{Waiting: 3, Awaited: quick, Silent: 4200 * ms, Quiet: 2 * s}, Working},
		"twice as long":                            {Signs{Waiting: 3, Awaited: quick, Silent: 4201 * ms, Quiet: 2 * s}, Suspect},
		"what it is used to is bounded":            {Signs{Waiting: 3, Awaited: quick, Silent: 20201 * ms, Quiet: time.Hour}, Hung},
		"it answers others":                        {Signs{Waiting: 5, Awaited: quick, Silent: time.Hour, Beside: true}, Working},
		"it answers others, and a probe can tell":  {Signs{Waiting: 1, Awaited: quick, Silent: 2 * s, Beside: true, Open: true}, Doubtful},
		"others, and the probe has time":           {Signs{Waiting: 1, Awaited: quick, Silent: 3 * s, Beside: true, Open: true, Probe: 1500 * ms}, Doubtful},
		"others, and the probe has no answer":      {Signs{Waiting: 1, Awaited: quick, Silent: 3 * s, Beside: true, Open: true, Probe: 1501 * ms}, Hung},
		"a token is late":                          {Signs{Waiting: 1, Awaited: token, Silent: 1021 * ms, Open: true}, Doubtful},
		"a token, and the probe has no answer":     {Signs{Waiting: 1, Awaited: token, Silent: 3 * s, Open: true, Probe: 1001 * ms}, Hung},
		"a token kept back, the probe is answered": {Signs{Waiting: 1, Awaited: token, Silent: 3 * s, Open: true, Answered: 2 * s}, Working},
		"a token kept back for long":               {Signs{Waiting: 1, Awaited: token, Silent: time.Hour}, Suspect},
		"several streams stop":                     {Signs{Waiting: 3, Awaited: token, Silent: 2 * s}, Suspect},
		"tokens behind a long prompt":              {Signs{Waiting: 1, Awaited: token.With(Await(Prompt{Input: 10_000, Took: s})), Silent: 39 * s, Open: true, Probe: 30 * s}, Working},
	} {
		if got := c.signs.Vitality(); got != c.want {
			t.Errorf("%s: %v, want %v", what, got, c.want)
		}
	}
}

func TestWorst(t *testing.T) {
	var w Worst
	now := time.Now()
	w.Add(1, 3*time.Second, now)
	w.Add(8, 2*time.Second, now)
	w.Add(9, 5*time.Second, now)
	w.Add(9, time.Second, now)
	w.Add(5000, time.Minute, now)
	for n, want := range map[int]time.Duration{0: 0, 1: 3 * time.Second, 7: 3 * time.Second, 8: 5 * time.Second, 1000: 5 * time.Second, 1 << 40: time.Minute} {
		if got := w.With(n, now); got != want {
			t.Errorf("with %d: %v, want %v", n, got, want)
		}
	}
	now = now.Add(FadeAfter + 1)
	w.Add(2, time.Second, now)
	if got := w.With(100, now); got != time.Second {
		t.Errorf("%v, want what is not forgotten", got)
	}
}

func TestMostInDoubt(t *testing.T) {
	for n, want := range map[int]int{0: 3, 1: 4, 3: 6, 10: 20} {
		if got := MostInDoubt(n); got != want {
			t.Errorf("with %d in flight: %d, want %d", n, got, want)
		}
	}
}

// What was measured with as many requests in flight counts for the first byte of a stream.
func TestLateUnderLoad(t *testing.T) {
	a := Await(Prompt{Input: 10, Took: 100 * time.Millisecond, Slowest: 6 * time.Second})
	if a.Late(15 * time.Second) {
		t.Error("late after 15 s where 6 s were measured")
	}
	if !a.Late(15*time.Second + 1) {
		t.Error("not late after more than twice the slowest and 3 s")
	}
}

func TestWorstOf(t *testing.T) {
	var w Worst
	now := time.Now()
	w.Add(8, 2*time.Second, now)
	w.Add(3, 5*time.Second, now)
	for n, want := range map[int]time.Duration{1: 5 * time.Second, 3: 5 * time.Second, 8: 5 * time.Second, 15: 5 * time.Second, 16: 10 * time.Second, 80: 50 * time.Second} {
		if got := w.Of(n, now); got != want {
			t.Errorf("with %d: %v, want %v", n, got, want)
		}
	}
	if got := w.Of(3, now.Add(FadeAfter+1)); got != 0 {
		t.Errorf("%v, want it forgotten", got)
	}
}

// By when a request has had its first byte is known only of requests such as those that were measured.
func TestDueOf(t *testing.T) {
	const ms, s = time.Millisecond, time.Second
	fast := Reading{Token: 300 * time.Microsecond, Longest: 4000, Counted: true}
	for what, c := range map[string]struct {
		prompt Prompt
		want   time.Duration
	}{
		"a stream":                         {Prompt{Input: 1000, Pace: fast, Worst: 2 * s}, 2500 * ms},
		"nothing is measured":              {Prompt{Input: 1000}, 0},
		"only by other requests":           {Prompt{Input: 1000, Pace: fast, Slowest: 2 * s}, 0},
		"others may have been cached":      {Prompt{Input: 1000, Pace: Reading{Token: 10 * time.Microsecond, Longest: 4000}, Worst: 100 * ms}, s},
		"others were shorter by far":       {Prompt{Input: 14_000, Pace: fast, Worst: 2 * s}, 42400 * ms},
		"the pace is unknown":              {Prompt{Input: 1000, Worst: 2 * s}, 4 * s},
		"a load that is not reported":      {Prompt{Input: 1000, Pace: fast, Worst: 2 * s, MayLoad: true}, 0},
		"a whole answer":                   {Prompt{Input: 1000, Pace: fast, Worst: 2 * s, Whole: true, Most: 20, Seen: 20}, 2500 * ms},
		"one that may be longer than any":  {Prompt{Input: 1000, Pace: fast, Worst: 2 * s, Whole: true, Most: 21, Seen: 20}, 0},
		"one without a bound":              {Prompt{Input: 1000, Pace: fast, Worst: 2 * s, Whole: true, Seen: 20}, 0},
		"an embedding, which has no token": {Prompt{Input: 100, Pace: fast, Worst: 100 * ms, Whole: true}, 125 * ms},
	} {
		if got := DueOf(c.prompt); got.Within != c.want {
			t.Errorf("%s: %v, want %v", what, got.Within, c.want)
		}
	}
}

// A request is due when what such requests took has passed, and the time for prompts that are much longer, which it may wait for.
func TestOverdue(t *testing.T) {
	const ms, s = time.Millisecond, time.Second
	usual := Prompt{Input: 1000, Usual: 1000, Worst: 2 * s, Pace: Reading{Token: 300 * time.Microsecond, Longest: 40_000, Counted: true}}
	long := usual
	long.Input = 20_000
	longer := long
	longer.Usual = 10_000
	for what, c := range map[string]struct {
		prompts []Prompt
		waited  time.Duration
		want    time.Duration
	}{
		"within its time":           {[]Prompt{usual}, 2500 * ms, 0},
		"overdue":                   {[]Prompt{usual}, 2700 * ms, 200 * ms},
		"many are":                  {[]Prompt{usual, usual, usual, usual}, 2700 * ms, 200 * ms},
		"beside a long one":         {[]Prompt{usual, long, usual}, 24100 * ms, 100 * ms},
		"beside several long ones":  {[]Prompt{long, long, usual}, 36 * s, 0},
		"where long ones are usual": {[]Prompt{longer, longer}, 12100 * ms, 100 * ms},
		"beside one like none":      {[]Prompt{usual, {Input: 1000}, usual}, time.Hour, 0},
		"like none":                 {[]Prompt{{Input: 1000}}, time.Hour, 0},
	} {
		due := DueOf(c.prompts[0])
		for _, p := range c.prompts[1:] {
			due = due.With(DueOf(p))
		}
		if got := due.Overdue(c.waited); got != c.want {
			t.Errorf("%s: overdue for %v, want %v", what, got, c.want)
		}
	}
}

// An engine that used to answer questions, and does not, is frozen when a request is overdue by what such requests took, even
// if its answer alone might take longer; a request that is overdue shows nothing without that.
func TestFrozenWithARequestThatIsOverdue(t *testing.T) {
	const ms, s = time.Millisecond, time.Second
	whole := Awaited{Expected: s, Prompt: s, Typical: 4 * s, Surely: 8 * s, Longest: 16 * s}
	for what, c := range map[string]struct {
		signs Signs
		want  Vitality
	}{
		"overdue":                       {Signs{Waiting: 4, Awaited: whole, Silent: 1600 * ms, Mute: s, Attentive: true, Overdue: 1001 * ms}, Frozen},
		"for less than a second":        {Signs{Waiting: 4, Awaited: whole, Silent: 1600 * ms, Mute: s, Attentive: true, Overdue: s}, Working},
		"something has come":            {Signs{Waiting: 4, Awaited: whole, Silent: 900 * ms, Mute: s, Attentive: true, Overdue: 2 * s}, Working},
		"mute for less than a second":   {Signs{Waiting: 4, Awaited: whole, Silent: 2 * s, Mute: 900 * ms, Attentive: true, Overdue: 2 * s}, Working},
		"it answers":                    {Signs{Waiting: 2, Awaited: whole, Silent: 2 * s, Attentive: true, Open: true, Overdue: 2 * s}, Working},
		"it never answered beside work": {Signs{Waiting: 4, Awaited: whole, Silent: 3 * s, Mute: 2 * s, Overdue: 2 * s}, Working},
		"it was as silent before":       {Signs{Waiting: 4, Awaited: whole, Silent: 2 * s, Mute: 2 * s, Attentive: true, Overdue: 2 * s, Quiet: s}, Working},
		"it answers other models":       {Signs{Waiting: 4, Awaited: whole, Silent: 2 * s, Mute: 2 * s, Attentive: true, Overdue: 2 * s, Beside: true}, Working},
		"it has answered a probe":       {Signs{Waiting: 4, Awaited: whole, Silent: 2 * s, Mute: s, Attentive: true, Overdue: 2 * s, Answered: s}, Working},
	} {
		if got := c.signs.Vitality(); got != c.want {
			t.Errorf("%s: %v, want %v", what, got, c.want)
		}
	}
}
