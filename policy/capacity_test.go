package policy_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/pulley-lb/pulley/policy"
)

// healthy is a worker with 10 requests in flight, a capacity of 40 and every signal.
func healthy() policy.Signals {
	return policy.Signals{
		InFlight: 10, Slots: 100, Limit: 40, Tokens: 1000, EngineSlots: 64, KVTokens: 100_000,
		Scrape: policy.Scrape{
			Taken: true, Age: 200 * time.Millisecond, InFlight: 10,
			Running: policy.Known(10), Waiting: policy.Known(0), KVUsed: policy.Known(0.1), Preempted: policy.Known(0),
		},
		GPUs: []policy.GPU{{Sampled: true, Age: 500 * time.Millisecond}},
	}
}

const gib = 1 << 30

func onDemand(free, perRequest float64) func(s *policy.Signals) {
	return func(s *policy.Signals) {
		s.OnDemand, s.BytesPerRequest = true, perRequest
		s.GPUs[0].Sample = policy.GPUSample{Free: policy.Known(free), Total: policy.Known(24 * gib)}
	}
}

func TestCredit(t *testing.T) {
	for what, c := range map[string]struct {
		change      func(s *policy.Signals)
		total, more int
		bound       policy.Bound
	}{
		"the adaptive limit, by a quarter at a time": {func(s *policy.Signals) {}, 40, 20, policy.BoundLimit},
		"what started since the scrape is in that quarter": {func(s *policy.Signals) {
			s.InFlight = 17
		}, 40, 13, policy.BoundLimit},
		"requests that ended since the scrape may be replaced, and the quarter added": {func(s *policy.Signals) {
			s.InFlight, s.Scrape.InFlight, s.Scrape.Running = 35, 40, policy.Known(40)
		}, 40, 5, policy.BoundLimit},
		"open bids are as good as taken":     {func(s *policy.Signals) { s.Bids = 8 }, 40, 12, policy.BoundLimit},
		"more bids than room":                {func(s *policy.Signals) { s.Bids = 80 }, 40, 0, policy.BoundLimit},
		"more in flight than the capacity":   {func(s *policy.Signals) { s.Limit = 5 }, 5, 0, policy.BoundLimit},
		"never above the configured slots":   {func(s *policy.Signals) { s.Slots = 12 }, 12, 2, policy.BoundSlots},
		"slots and limit alike: the slots":   {func(s *policy.Signals) { s.Slots = 40 }, 40, 20, policy.BoundSlots},
		"a limit with a fraction":            {func(s *policy.Signals) { s.Limit = 12.9 }, 12, 2, policy.BoundLimit},
		"no adaptive limit":                  {func(s *policy.Signals) { s.Limit = 0 }, 65, 20, policy.BoundEngine},
		"the engine's slots and a few queue": {func(s *policy.Signals) { s.EngineSlots = 20 }, 22, 12, policy.BoundEngine},
		"others' requests on the engine": {func(s *policy.Signals) {
			s.Scrape.Running = policy.Known(50) // 40 of other clients
		}, 26, 16, policy.BoundEngine},
		"what ended since the scrape is not others'": {func(s *policy.Signals) {
			s.InFlight, s.Scrape.InFlight, s.EngineSlots, s.Scrape.Running = 2, 18, 18, policy.Known(18)
		}, 20, 18, policy.BoundEngine},
		"an engine that others fill": {func(s *policy.Signals) { s.Scrape.Running = policy.Known(200) }, 0, 0, policy.BoundEngine},
		"prompts wait for those before them": {func(s *policy.Signals) {
			s.Scrape.Waiting, s.Scrape.Prefilling, s.Scrape.Prefill = policy.Known(8), 10, 250*time.Millisecond
		}, 40, 20, policy.BoundLimit},
		"too many prompts wait for those before them": {func(s *policy.Signals) {
			s.Scrape.Waiting, s.Scrape.Prefilling, s.Scrape.Prefill = policy.Known(10), 12, 250*time.Millisecond
		}, 10, 0, policy.BoundQueue},
		"prompts wait for a slot": {func(s *policy.Signals) {
			s.Scrape.Waiting, s.Scrape.Prefilling, s.Scrape.Prefill = policy.Known(8), 9, 250*time.Millisecond
		}, 10, 0, policy.BoundQueue},
		"prompts wait, for an unknown time": {func(s *policy.Signals) {
			s.Scrape.Waiting, s.Scrape.Prefilling = policy.Known(8), 10
		}, 10, 0, policy.BoundQueue},
		"requests wait in the engine": {func(s *policy.Signals) {
			s.Scrape.Waiting = policy.Known(2)
		}, 10, 0, policy.BoundQueue},
		"one waits, as it may":              {func(s *policy.Signals) { s.Scrape.Waiting = policy.Known(1) }, 40, 20, policy.BoundLimit},
		"one waits, and there were more":    {func(s *policy.Signals) { s.Scrape.Waiting, s.QueueFull = policy.Known(1), true }, 10, 0, policy.BoundQueue},
		"none waits, and there were some":   {func(s *policy.Signals) { s.QueueFull = true }, 40, 20, policy.BoundLimit},
		"the KV cache has room for five":    {func(s *policy.Signals) { s.Scrape.KVUsed = policy.Known(0.85) }, 15, 4, policy.BoundKV},
		"two of them started since":         {func(s *policy.Signals) { s.Scrape.KVUsed, s.InFlight = policy.Known(0.85), 12 }, 15, 2, policy.BoundKV},
		"one of them waits in the engine":   {func(s *policy.Signals) { s.Scrape.KVUsed, s.Scrape.Waiting = policy.Known(0.85), policy.Known(1) }, 14, 4, policy.BoundKV},
		"the KV cache is above its knee":    {func(s *policy.Signals) { s.Scrape.KVUsed = policy.Known(0.93) }, 7, 0, policy.BoundKV},
		"the KV cache is full":              {func(s *policy.Signals) { s.Scrape.KVUsed = policy.Known(1) }, 0, 0, policy.BoundKV},
		"a KV cache of unknown size, easy":  {func(s *policy.Signals) { s.KVTokens, s.Scrape.KVUsed = 0, policy.Known(0.7) }, 40, 10, policy.BoundLimit},
		"a KV cache of unknown size, half":  {func(s *policy.Signals) { s.KVTokens, s.Scrape.KVUsed = 0, policy.Known(0.8) }, 20, 5, policy.BoundKV},
		"a KV cache of unknown size, full":  {func(s *policy.Signals) { s.KVTokens, s.Scrape.KVUsed = 0, policy.Known(0.95) }, 0, 0, policy.BoundKV},
		"unknown size, and no limit either": {func(s *policy.Signals) { s.KVTokens, s.Limit, s.Scrape.KVUsed = 0, 0, policy.Known(0.8) }, 50, 13, policy.BoundKV},
		"requests of unknown size":          {func(s *policy.Signals) { s.Tokens, s.Scrape.KVUsed = 0, policy.Known(0.8) }, 19, 5, policy.BoundKV},
		"an unknown KV cache does not bind": {func(s *policy.Signals) {
			s.Scrape.KVUsed = policy.Maybe{}
		}, 40, 30, policy.BoundLimit},
		"a metric that is not a number is unknown": {func(s *policy.Signals) {
			s.Scrape.KVUsed, s.Scrape.Waiting = policy.Known(math.NaN()), policy.Known(math.Inf(1))
		}, 40, 30, policy.BoundLimit},
		"memory for five, of an engine that takes it on demand": {onDemand(5.6*gib, gib), 15, 5, policy.BoundMemory},
		"memory is short, whatever a request takes":             {onDemand(0.4*gib, 0), 10, 0, policy.BoundMemory},
		"memory that is not short, for requests of any size":    {onDemand(5*gib, 0), 40, 20, policy.BoundLimit},
		"unknown memory": {func(s *policy.Signals) {
			s.OnDemand, s.BytesPerRequest = true, gib
		}, 40, 20, policy.BoundLimit},
		"free memory of an engine that preallocates says nothing": {func(s *policy.Signals) {
			onDemand(0, gib)(s)
			s.OnDemand = false
		}, 40, 20, policy.BoundLimit},
		"a memory sample that is too old": {func(s *policy.Signals) {
			onDemand(0, gib)(s)
			s.GPUs[0].Age = time.Minute
		}, 40, 20, policy.BoundLimit},
		"a GPU throttles":              {func(s *policy.Signals) { s.GPUs[0].Strain = policy.Hot }, 20, 10, policy.BoundThrottle},
		"a GPU is warm":                {func(s *policy.Signals) { s.GPUs[0].Strain = policy.Warm }, 30, 20, policy.BoundThrottle},
		"another process's memory":     {func(s *policy.Signals) { s.GPUs[0].Strain = policy.ForeignMemory }, 30, 20, policy.BoundMemory},
		"the most strained GPU counts": {func(s *policy.Signals) { s.GPUs = append(s.GPUs, policy.GPU{Sampled: true, Strain: policy.Hot}) }, 20, 10, policy.BoundThrottle},
		"a strain of a minute ago":     {func(s *policy.Signals) { s.GPUs[0] = policy.GPU{Sampled: true, Age: time.Minute, Strain: policy.Hot} }, 40, 20, policy.BoundLimit},
		"a strain of ten seconds ago": {func(s *policy.Signals) {
			s.GPUs[0] = policy.GPU{Sampled: true, Age: 10 * time.Second, Strain: policy.Hot}
		}, 20, 10, policy.BoundThrottle},
		"fenced":                         {func(s *policy.Signals) { s.Fence = "GPU lost" }, 0, 0, policy.BoundFence},
		"fenced and idle":                {func(s *policy.Signals) { s.Fence, s.InFlight = "GPU lost", 0 }, 0, 0, policy.BoundFence},
		"no NVML":                        {func(s *policy.Signals) { s.GPUs = nil }, 40, 20, policy.BoundLimit},
		"no NVML, and it is required":    {func(s *policy.Signals) { s.GPUs, s.NVMLRequired = nil, true }, 0, 0, policy.BoundFence},
		"NVML is required and stale":     {func(s *policy.Signals) { s.NVMLRequired, s.GPUs[0].Age = true, 20*time.Second }, 40, 20, policy.BoundLimit},
		"NVML is required and silent":    {func(s *policy.Signals) { s.NVMLRequired, s.GPUs[0].Age = true, 31*time.Second }, 0, 0, policy.BoundFence},
		"a scrape of 3 s ago":            {func(s *policy.Signals) { s.Scrape.Age = 3 * time.Second }, 10, 0, policy.BoundStale},
		"a scrape of 3 s ago, and idle":  {func(s *policy.Signals) { s.Scrape.Age, s.InFlight = 3*time.Second, 0 }, 10, 10, policy.BoundStale},
		"what ended since is replaced":   {func(s *policy.Signals) { s.Scrape.Age, s.InFlight = 3*time.Second, 7 }, 10, 3, policy.BoundStale},
		"but not where requests waited":  {func(s *policy.Signals) { s.Scrape.Age, s.InFlight, s.QueueFull = 3*time.Second, 7, true }, 7, 0, policy.BoundStale},
		"a scrape of 11 s ago":           {func(s *policy.Signals) { s.Scrape.Age = 11 * time.Second }, 40, 30, policy.BoundLimit},
		"no metrics: slots and limit":    {func(s *policy.Signals) { s.Scrape, s.Slots = policy.Scrape{}, 16 }, 16, 6, policy.BoundSlots},
		"no useful metrics":              {func(s *policy.Signals) { s.Scrape, s.Slots = policy.Scrape{Taken: true}, 16 }, 16, 6, policy.BoundSlots},
		"no metrics: the engine's slots": {func(s *policy.Signals) { s.Scrape, s.Slots, s.EngineSlots = policy.Scrape{}, 0, 16 }, 16, 6, policy.BoundEngine},
		"no metrics and no slots at all": {func(s *policy.Signals) { s.Scrape, s.Slots, s.EngineSlots = policy.Scrape{}, 0, 0 }, 1, 0, policy.BoundUnknown},
		"no metrics, and a GPU throttles": {func(s *policy.Signals) {
			s.Scrape, s.GPUs[0].Strain = policy.Scrape{}, policy.Hot
		}, 20, 10, policy.BoundThrottle},
		"nothing is known": {func(s *policy.Signals) { *s = policy.Signals{} }, 1, 1, policy.BoundUnknown},
		"one waits for the slots that the engine reports: requests that end are replaced": {func(s *policy.Signals) {
			s.InFlight, s.Scrape.InFlight, s.EngineSlots, s.Scrape.Running, s.Scrape.Waiting, s.Limit = 3, 7, 6, policy.Known(6), policy.Known(1), 20
		}, 7, 4, policy.BoundQueue},
		"idle and everything full: one all the same": {func(s *policy.Signals) {
			s.InFlight, s.Scrape.KVUsed, s.Scrape.Waiting, s.GPUs[0].Strain = 0, policy.Known(1), policy.Known(9), policy.Hot
		}, 1, 1, policy.BoundKV},
		"fixed slots": {func(s *policy.Signals) { s.Fixed = true }, 100, 90, policy.BoundSlots},
		"fixed slots, whatever the signals": {func(s *policy.Signals) {
			onDemand(0, gib)(s)
			s.Fixed, s.Scrape.KVUsed, s.Scrape.Waiting = true, policy.Known(1), policy.Known(9)
		}, 100, 90, policy.BoundSlots},
		"fixed slots and a fence":   {func(s *policy.Signals) { s.Fixed, s.Fence = true, "GPU lost" }, 0, 0, policy.BoundFence},
		"fixed, as the engine says": {func(s *policy.Signals) { s.Fixed, s.Slots = true, 0 }, 64, 54, policy.BoundEngine},
		"fixed, without any slots":  {func(s *policy.Signals) { s.Fixed, s.Slots, s.EngineSlots = true, 0, 0 }, 1, 0, policy.BoundUnknown},
	} {
		s := healthy()
		c.change(&s)
		if got := s.Capacity(); got.Total != c.total || got.More != c.more || got.Bound != c.bound {
			t.Errorf("%s: %d, %d more, bound by %s; want %d, %d, %s (%v)", what, got.Total, got.More, got.Bound, c.total, c.more, c.bound, s.Terms())
		}
	}
}

// A fixed worker on a throttled GPU keeps its slots: the operator decided.
func TestFixedSlotsAreNotThrottled(t *testing.T) {
	s := healthy()
	s.Fixed, s.GPUs[0].Strain = true, policy.Hot
	if c := s.Capacity(); c.Total != 100 || c.Factor != 1 {
		t.Errorf("%+v", c)
	}
}

func TestHeadroom(t *testing.T) {
	for what, c := range map[string]struct {
		change func(s *policy.Signals)
		want   float64
	}{
		"a quarter of the limit is taken":         {func(s *policy.Signals) {}, 0.75},
		"all of it":                               {func(s *policy.Signals) { s.InFlight = 40 }, 0},
		"the KV cache has least":                  {func(s *policy.Signals) { s.Scrape.KVUsed = policy.Known(0.81) }, 0.1},
		"what waits does not enter":               {func(s *policy.Signals) { s.Scrape.Waiting = policy.Known(3) }, 0.75},
		"a hot GPU":                               {func(s *policy.Signals) { s.GPUs[0].Strain = policy.Hot }, 0.375},
		"2 °C to go":                              {func(s *policy.Signals) { s.GPUs[0].Sample.Margin = policy.Known(2) }, 0.2},
		"memory, half of which is free":           {onDemand(12.256*gib, 0), 0.5},
		"fenced":                                  {func(s *policy.Signals) { s.Fence = "down" }, 0},
		"nothing known but that nothing is there": {func(s *policy.Signals) { *s = policy.Signals{} }, 1},
	} {
		s := healthy()
		c.change(&s)
		if got := s.Capacity().Headroom; math.Abs(got-c.want) > 0.01 {
			t.Errorf("%s: %.3f, want %.3f", what, got, c.want)
		}
	}
}

// anySignals returns random signals, sensible or not.
func anySignals(r *rand.Rand) policy.Signals {
	reading := func(most float64) policy.Maybe {
		switch r.IntN(6) {
		case 0:
			return policy.Maybe{}
		case 1:
			return policy.Known([]float64{math.NaN(), math.Inf(1), math.Inf(-1), -1, 0, 2 * most}[r.IntN(6)])
		}
		return policy.Known(r.Float64() * most)
	}
	some := func(most int) int { return max(r.IntN(most+most/3)-most/3, 0) }
	s := policy.Signals{
		InFlight: some(80), Bids: some(20), Slots: some(100), Fixed: r.IntN(8) == 0, Limit: float64(some(100)) * 1.1,
		Tokens: float64(some(3000)), QueueFull: r.IntN(3) == 0, EngineSlots: some(64), KVTokens: float64(some(500_000)),
		OnDemand: r.IntN(3) == 0, BytesPerRequest: float64(some(gib)), NVMLRequired: r.IntN(8) == 0,
		Scrape: policy.Scrape{
			Taken: r.IntN(6) > 0, Age: time.Duration(r.Float64() * float64(3*time.Second)), InFlight: some(80),
			Running: reading(80), Waiting: reading(6), KVUsed: reading(1),
			Prefilling: some(8), Prefill: time.Duration(some(3)) * time.Second / 2,
		},
	}
	if r.IntN(5) == 0 {
		s.Scrape.Age = 20 * time.Second
	}
	if r.IntN(10) == 0 {
		s.Fence = "down"
	}
	for range r.IntN(3) {
		s.GPUs = append(s.GPUs, policy.GPU{
			Sampled: r.IntN(5) > 0, Age: time.Duration(r.Float64() * float64(6*time.Second)), Strain: policy.Strain(r.IntN(4)),
			Sample: policy.GPUSample{Free: reading(80 * gib), Total: reading(80 * gib), Margin: reading(40)},
		})
	}
	return s
}

func TestAnyCreditIsInBounds(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	seen := make(map[policy.Bound]int)
	for range 50_000 {
		s := anySignals(r)
		c := s.Capacity()
		seen[c.Bound]++
		ceiling := s.Slots
		if ceiling == 0 {
			ceiling = math.MaxInt
		}
		switch {
		case c.Total < 0 || c.Total > ceiling || c.More < 0 || c.More > max(c.Total-s.InFlight-s.Bids, 0):
			t.Fatalf("%+v\n of %+v", c, s)
		case !(c.Headroom >= 0 && c.Headroom <= 1):
			t.Fatalf("headroom %v of %+v", c.Headroom, s)
		case (c.Bound == policy.BoundFence) != (c.Total == 0 && c.Factor == 0):
			t.Fatalf("fence: %+v\n of %+v", c, s)
		case c.Bound == policy.BoundFence && (c.More > 0 || c.Why == ""):
			t.Fatalf("fenced: %+v\n of %+v", c, s)
		case c.Bound != policy.BoundFence && s.InFlight == 0 && s.Bids == 0 && c.More < 1:
			t.Fatalf("healthy, idle and nothing to do: %+v\n of %+v", c, s)
		case c.Engine != policy.Fresh && c.Bound == policy.BoundQueue:
			t.Fatalf("bound by what is not known: %+v\n of %+v", c, s)
		}
	}
	for _, b := range policy.Bounds {
		if seen[b] == 0 {
			t.Errorf("nothing was bound by %q", b)
		}
	}
}

// More load, or less of any resource, never increases the capacity.
func TestCreditIsMonotone(t *testing.T) {
	more := func(p *policy.Maybe, by float64) {
		if v, known := p.Value(); known {
			*p = policy.Known(v + by)
		}
	}
	worse := map[string]func(s *policy.Signals, by float64){
		"KV use":        func(s *policy.Signals, by float64) { more(&s.Scrape.KVUsed, by) },
		"waiting":       func(s *policy.Signals, by float64) { more(&s.Scrape.Waiting, 10*by) },
		"running":       func(s *policy.Signals, by float64) { more(&s.Scrape.Running, 100*by) },
		"full before":   func(s *policy.Signals, by float64) { s.QueueFull = true },
		"limit":         func(s *policy.Signals, by float64) { s.Limit = max(s.Limit*(1-by), min(s.Limit, 1)) },
		"slots":         func(s *policy.Signals, by float64) { s.Slots = max(int(float64(s.Slots)*(1-by)), min(s.Slots, 1)) },
		"request size":  func(s *policy.Signals, by float64) { s.Tokens *= 1 + by },
		"open bids":     func(s *policy.Signals, by float64) { s.Bids += int(10 * by) },
		"fence":         func(s *policy.Signals, by float64) { s.Fence = "down" },
		"NVML required": func(s *policy.Signals, by float64) { s.NVMLRequired = true },
		"slow prompts": func(s *policy.Signals, by float64) {
			s.Scrape.Prefill = time.Duration(float64(s.Scrape.Prefill) * (1 + by))
		},
		"strain": func(s *policy.Signals, by float64) {
			for i := range s.GPUs {
				s.GPUs[i].Strain = min(s.GPUs[i].Strain+1, policy.Hot)
			}
		},
		"free memory": func(s *policy.Signals, by float64) {
			for i := range s.GPUs {
				more(&s.GPUs[i].Sample.Free, -by*gib)
			}
		},
	}
	for what, make := range worse {
		r := rand.New(rand.NewPCG(3, 4))
		for range 8_000 {
			s := anySignals(r)
			if used, known := s.Scrape.KVUsed.Value(); what == "request size" && known && used > 0.9 {
				continue // fewer requests then repay a debt of so many tokens
			}
			if s.Tokens == 0 {
				s.Tokens = 1024
			}
			if what == "limit" && s.Limit == 0 || what == "slots" && s.Slots == 0 {
				continue
			}
			before := s.Capacity()
			worse := s
			worse.GPUs = append([]policy.GPU(nil), s.GPUs...)
			make(&worse, r.Float64())
			if after := worse.Capacity(); after.Total > before.Total || after.More > before.More {
				t.Fatalf("%s: %+v\n then %+v\n of %+v", what, before, after, worse)
			}
		}
	}
}

func TestStrain(t *testing.T) {
	const none, hot, warm, powerCap = 0, 0x40, 0x20, 0x4
	type step struct {
		seconds int
		sample  policy.GPUSample
		want    policy.Strain
	}
	bits := func(b uint64) policy.GPUSample { return policy.GPUSample{Reasons: b} }
	free := func(f float64) policy.GPUSample { return policy.GPUSample{Free: policy.Known(f)} }
	for what, steps := range map[string][]step{
		"one spike is none":              {{1, bits(hot), policy.NoStrain}, {1, bits(none), policy.NoStrain}, {1, bits(hot), policy.NoStrain}},
		"three of five":                  {{1, bits(hot), 0}, {1, bits(none), 0}, {1, bits(hot), 0}, {1, bits(none), 0}, {1, bits(hot), policy.Hot}},
		"three of six":                   {{1, bits(hot), 0}, {1, bits(none), 0}, {1, bits(none), 0}, {1, bits(hot), 0}, {1, bits(none), 0}, {1, bits(hot), 0}},
		"each reason of the hardware":    {{1, bits(0x8), 0}, {1, bits(0x80), 0}, {1, bits(0x40), policy.Hot}},
		"it stays for half a minute":     {{1, bits(hot), 0}, {1, bits(hot), 0}, {1, bits(hot), policy.Hot}, {29, bits(none), policy.Hot}, {1, bits(none), policy.NoStrain}},
		"and another spike renews it":    {{1, bits(hot), 0}, {1, bits(hot), 0}, {1, bits(hot), policy.Hot}, {29, bits(hot), policy.Hot}, {29, bits(none), policy.Hot}, {1, bits(none), 0}},
		"the driver's slowdown":          {{1, bits(warm), 0}, {1, bits(warm), 0}, {1, bits(warm), policy.Warm}},
		"both are the worse":             {{1, bits(warm | hot), 0}, {1, bits(warm | hot), 0}, {1, bits(warm | hot), policy.Hot}},
		"a busy GPU at its power cap":    {{1, bits(powerCap), 0}, {1, bits(powerCap), 0}, {1, bits(powerCap), 0}, {1, bits(powerCap), 0}},
		"2 °C to go is warm at once":     {{1, policy.GPUSample{Margin: policy.Known(2)}, policy.Warm}, {29, policy.GPUSample{Margin: policy.Known(20)}, policy.Warm}, {1, policy.GPUSample{}, 0}},
		"another process comes and goes": {{1, free(8 * gib), 0}, {1, free(7.1 * gib), 0}, {1, free(6.9 * gib), policy.ForeignMemory}, {1, free(7.4 * gib), policy.ForeignMemory}, {1, free(7.6 * gib), 0}},
		"next to nothing is left":        {{1, free(0.2 * gib), policy.ForeignMemory}},
		"unknown memory":                 {{1, free(8 * gib), 0}, {1, policy.GPUSample{}, 0}},
		"memory of a fresh allocation":   {{1, free(0.3 * gib), 0}, {1, free(0.3 * gib), 0}},
	} {
		var w policy.StrainWatch
		now := noon
		for i, s := range steps {
			now = now.Add(time.Duration(s.seconds) * time.Second)
			if got := w.Add(s.sample, true, now); got != s.want {
				t.Errorf("%s: sample %d: %q, want %q", what, i+1, got, s.want)
			}
		}
	}
	var w policy.StrainWatch
	w.Add(free(20*gib), false, noon)
	if got := w.Add(free(0.1*gib), false, noon); got != policy.NoStrain {
		t.Errorf("an engine that allocates on demand counts as another process: %q", got)
	}
}

func TestFreshness(t *testing.T) {
	for what, c := range map[string]struct{ got, want policy.Freshness }{
		"no scrape":                         {policy.Scrape{}.Freshness(), policy.Missing},
		"a GPU that was not seen":           {policy.GPU{}.Freshness(), policy.Missing},
		"no GPU":                            {policy.Signals{}.GPUFreshness(), policy.Missing},
		"3 s of a sample each second":       {policy.GPU{Sampled: true, Age: 3 * time.Second}.Freshness(), policy.Fresh},
		"4 s of a sample each second":       {policy.GPU{Sampled: true, Age: 4 * time.Second}.Freshness(), policy.Stale},
		"4 s of a sample each five seconds": {policy.GPU{Sampled: true, Age: 4 * time.Second, Every: 5 * time.Second}.Freshness(), policy.Fresh},
		"31 s":                              {policy.GPU{Sampled: true, Age: 31 * time.Second}.Freshness(), policy.Missing},
		"one of two was not seen":           {policy.Signals{GPUs: []policy.GPU{{Sampled: true}, {}}}.GPUFreshness(), policy.Missing},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v, want %v", what, c.got, c.want)
		}
	}
}

// A worker whose KV cache is nearly full takes a few more requests, and says what binds it.
func ExampleSignals_Capacity() {
	s := policy.Signals{
		InFlight: 30, Slots: 64, Limit: 48, Tokens: 1200, EngineSlots: 64, KVTokens: 60_000,
		Scrape: policy.Scrape{
			Taken: true, Age: 300 * time.Millisecond, InFlight: 30,
			Running: policy.Known(30), Waiting: policy.Known(0), KVUsed: policy.Known(0.79),
		},
	}
	c := s.Capacity()
	fmt.Printf("%d of %d slots, %d more now, bound by %s\n", c.Total, s.Slots, c.More, c.Bound)
	for _, term := range s.Terms() {
		if term.Max < float64(s.Slots) {
			fmt.Printf("%s %.0f\n", term.Bound, term.Max)
		}
	}
	// Output:
	// 35 of 64 slots, 5 more now, bound by kv
	// kv 35
	// limit 48
}

func BenchmarkCredit(b *testing.B) {
	s := healthy()
	for b.Loop() {
		if s.Capacity().Total != 40 {
			b.Fatal("not 40")
		}
	}
}

// A follow-up may join prompts that wait for others which the engine reads, and nothing else that waits.
func TestBehindPromptsThatWait(t *testing.T) {
	for what, c := range map[string]struct {
		change       func(s *policy.Signals)
		more, behind int
	}{
		"nothing waits": {func(s *policy.Signals) {}, 20, 20},
		"prompts wait for another": {func(s *policy.Signals) {
			s.Scrape.Waiting, s.Scrape.Prefilling = policy.Known(4), 5
		}, 0, 20},
		"no slot is left beside them": {func(s *policy.Signals) {
			s.Scrape.Waiting, s.Scrape.Prefilling, s.Slots = policy.Known(4), 5, 10
		}, 0, 0},
		"the KV cache has room for three": {func(s *policy.Signals) {
			s.Scrape.Waiting, s.Scrape.Prefilling, s.Scrape.KVUsed = policy.Known(4), 5, policy.Known(0.83)
		}, 0, 3},
		"they wait for a slot: no prompt is being read": {func(s *policy.Signals) {
			s.Scrape.Waiting, s.Scrape.Prefilling = policy.Known(4), 4
		}, 0, 0},
		"they are of other clients": {func(s *policy.Signals) { s.Scrape.Waiting = policy.Known(4) }, 0, 0},
		"a fence": {func(s *policy.Signals) {
			s.Scrape.Waiting, s.Scrape.Prefilling, s.Fence = policy.Known(4), 5, "lost"
		}, 0, 0},
	} {
		s := healthy()
		c.change(&s)
		if got := s.Capacity(); got.More != c.more || got.Behind != c.behind {
			t.Errorf("%s: %d more, %d behind, want %d and %d", what, got.More, got.Behind, c.more, c.behind)
		}
	}
}
