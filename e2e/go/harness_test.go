// Package e2e drives a running gateway, or a bare engine, with the official OpenAI SDK for Go,
// unmodified and with its default settings. The environment says where; see ../harness.mjs.
package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
)

// target is what the environment names.
type target struct {
	baseURL   string
	model     string
	engines   []string
	simulated bool
	pulley    bool
}

// setup skips where no service is named, so that a plain `go test ./...` passes.
func setup(t *testing.T) target {
	t.Helper()
	if os.Getenv("BASE_URL") == "" {
		t.Skip("BASE_URL is not set; see ../run")
	}
	return target{
		baseURL:   os.Getenv("BASE_URL"),
		model:     os.Getenv("MODEL"),
		engines:   strings.Split(os.Getenv("ENGINE_URLS"), ","),
		simulated: os.Getenv("ENGINE") == "sim",
		pulley:    os.Getenv("PULLEY") == "1",
	}
}

func (x target) client(opts ...option.RequestOption) openai.Client {
	base := []option.RequestOption{option.WithBaseURL(x.baseURL), option.WithAPIKey("unused")}
	return openai.NewClient(append(base, opts...)...)
}

// chat is greedy: the same request has the same answer every time.
func (x target) chat(tokens int64) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{
		Model:       x.model,
		Messages:    []openai.ChatCompletionMessageParamUnion{openai.UserMessage("Tell me a story.")},
		Temperature: openai.Float(0),
		MaxTokens:   openai.Int(tokens),
	}
}

// direct asks the first engine with nothing between.
func (x target) direct(t *testing.T, path string, ask, answer any) {
	t.Helper()
	body, err := json.Marshal(ask)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.Post(x.engines[0]+"/v1/"+path, "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Fatalf("the engine itself answers %s with %s", path, res.Status)
	}
	if err := json.NewDecoder(res.Body).Decode(answer); err != nil {
		t.Fatal(err)
	}
}

func (x target) directText(t *testing.T, tokens int64) string {
	t.Helper()
	var answer openai.ChatCompletion
	x.direct(t, "chat/completions", x.chat(tokens), &answer)
	return answer.Choices[0].Message.Content
}

// counts are an engine's own.
type counts struct{ Running, Waiting, Started, Finished, Aborted int }

// stats adds up the engines' counts.
func (x target) stats(t *testing.T) counts {
	t.Helper()
	path := "/stats"
	if x.simulated {
		path = "/sim/stats"
	}
	var sum counts
	for _, url := range x.engines {
		res, err := http.Get(url + path)
		if err != nil {
			t.Fatal(err)
		}
		var one counts
		err = json.NewDecoder(res.Body).Decode(&one)
		res.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		sum = counts{
			sum.Running + one.Running, sum.Waiting + one.Waiting,
			sum.Started + one.Started, sum.Finished + one.Finished, sum.Aborted + one.Aborted,
		}
	}
	return sum
}

// awaitBusy waits until the engines have started another request than those counted before.
func (x target) awaitBusy(t *testing.T, before counts) {
	t.Helper()
	x.await(t, "an engine starts the request", func(now counts) bool { return now.Started > before.Started })
}

// checkAborted checks that an engine noticed a client's leaving and does nothing any more.
func (x target) checkAborted(t *testing.T, before counts) {
	t.Helper()
	x.await(t, "the engine drops the request", func(now counts) bool {
		return now.Aborted > before.Aborted && now.Running == 0 && now.Waiting == 0
	})
}

func (x target) await(t *testing.T, what string, ok func(counts) bool) {
	t.Helper()
	deadline := time.Now().Add(3 * time.Second)
	for now := x.stats(t); !ok(now); now = x.stats(t) {
		if time.Now().After(deadline) {
			t.Fatalf("waited 3 s in vain until %s: %+v", what, now)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// misbehave tells the engine to go wrong in a way of the simulator's.
func misbehave(how string) option.RequestOption { return option.WithHeader("x-sim", how) }

// refuser tells the engine to refuse the first n attempts with 429 and keeps the status of every
// attempt; whether there is another attempt is up to the SDK.
type refuser struct {
	n        int
	statuses []int
}

func (r *refuser) attempt(req *http.Request, next option.MiddlewareNext) (*http.Response, error) {
	if len(r.statuses) < r.n {
		req.Header.Set("x-sim", "refuse")
	}
	res, err := next(req)
	if err == nil {
		r.statuses = append(r.statuses, res.StatusCode)
	}
	return res, err
}

// arrivals collects the pieces of a stream and when each came.
type arrivals struct {
	pieces []string
	times  []time.Time
}

func (a *arrivals) add(piece string) {
	if piece == "" {
		return
	}
	a.pieces = append(a.pieces, piece)
	a.times = append(a.times, time.Now())
}

// tokenGap is the least time that the engines take from token to token.
const tokenGap = 5 * time.Millisecond

// checkStream checks that the tokens came one by one, at the engine's pace, and nothing was lost.
func (a *arrivals) checkStream(t *testing.T, want string, tokens int) {
	t.Helper()
	if got := strings.Join(a.pieces, ""); got != want {
		t.Fatalf("got %q\nwant %q", got, want)
	}
	if len(a.pieces) != tokens {
		t.Fatalf("%d tokens came in %d pieces", tokens, len(a.pieces))
	}
	span := a.times[len(a.times)-1].Sub(a.times[0])
	if span < time.Duration(tokens)*tokenGap/2 {
		t.Fatalf("%d tokens came within %v: not as they were made", tokens, span)
	}
}

// checkPart checks for an honest beginning: more than nothing, less than all.
func (a *arrivals) checkPart(t *testing.T, want string) {
	t.Helper()
	got := strings.Join(a.pieces, "")
	if got == "" || len(got) >= len(want) || !strings.HasPrefix(want, got) {
		t.Fatalf("got %q, which is no part of %q", got, want)
	}
}

func (c counts) String() string {
	return fmt.Sprintf("%d running, %d waiting, %d started, %d finished, %d aborted", c.Running, c.Waiting, c.Started, c.Finished, c.Aborted)
}
