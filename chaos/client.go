package chaos

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pulley-lb/pulley/engine/sim"
)

const shortAnswer, longAnswer = 20, 150 // tokens

// door is a gateway as the clients' load balancer knows it.
type door struct {
	name, addr string
	open       atomic.Bool // it said that it is ready when it was last asked
}

// clients send requests at a steady rate, check each token of each answer, and note what they got. They choose a gateway as
// a load balancer does: in turn among those that say that they are ready, and another one if the connection is refused.
type clients struct {
	now      func() Seconds
	doors    []*door
	patience time.Duration // until a client gives up
	http     *http.Client

	wg sync.WaitGroup

	mu       sync.Mutex
	next     int // door
	requests []*Request
}

func newClients(doors []*door, patience time.Duration, now func() Seconds) *clients {
	return &clients{now: now, doors: doors, patience: patience, http: &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true}}}
}

// run sends requests until ctx ends, and returns when all have ended. What it asks for is a function of the seed.
func (c *clients) run(ctx context.Context, rate float64, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	tick := time.NewTicker(time.Duration(float64(time.Second) / rate))
	defer tick.Stop()
	for n := 0; ctx.Err() == nil; n++ {
		r := draw(rng, n)
		select {
		case <-ctx.Done():
		case <-tick.C:
			c.send(r, cancelAfter(rng, r))
		}
	}
	c.wg.Wait()
}

// draw draws the next request.
func draw(rng *rand.Rand, n int) *Request {
	r := &Request{ID: fmt.Sprintf("r%06d", n), Stream: rng.Float64() < 0.6, Tokens: shortAnswer}
	if rng.Float64() < 0.2 {
		r.Tokens = longAnswer
	}
	switch u := rng.Float64(); {
	case u < 0.1:
		r.Tier = "priority"
	case u < 0.2:
		r.Tier = "batch"
	}
	if rng.Float64() < 0.05 {
		r.Kind, r.Tokens = KindCancel, longAnswer
	}
	return r
}

func cancelAfter(rng *rand.Rand, r *Request) time.Duration {
	u := rng.Float64()
	if r.Kind != KindCancel {
		return 0
	}
	return time.Duration(u * float64(2*time.Second))
}

// send sends a request on a goroutine of its own. With cancelAfter, its client leaves after that time.
func (c *clients) send(r *Request, cancelAfter time.Duration) {
	c.mu.Lock()
	c.requests = append(c.requests, r)
	c.mu.Unlock()
	c.wg.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), c.patience)
		defer cancel()
		var left atomic.Bool
		if cancelAfter > 0 {
			timer := time.AfterFunc(cancelAfter, func() { left.Store(true); cancel() })
			defer timer.Stop()
		}
		done := *r
		done.Sent = c.now()
		err := c.ask(ctx, &done)
		done.End = c.now()
		switch {
		case err == nil:
		case left.Load():
			done.Outcome, done.Detail = Cancelled, ""
		case ctx.Err() != nil:
			done.Outcome, done.Detail = Lost, err.Error()
		case done.Outcome == "":
			done.Outcome, done.Detail = Broken, err.Error()
		}
		c.mu.Lock()
		*r = done
		c.mu.Unlock()
	})
}

// history returns the requests as they are now.
func (c *clients) history() []Request {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]Request, len(c.requests))
	for i, r := range c.requests {
		all[i] = *r
	}
	return all
}

// choose returns the doors in the order in which they are to be tried.
func (c *clients) choose() []*door {
	c.mu.Lock()
	c.next++
	first := c.next
	c.mu.Unlock()
	var open, closed []*door
	for i := range c.doors {
		if d := c.doors[(first+i)%len(c.doors)]; d.open.Load() {
			open = append(open, d)
		} else {
			closed = append(closed, d)
		}
	}
	return append(open, closed...)
}

// prompt is different for each request, so that the tokens of their answers are.
func prompt(id string) string { return "the answer to " + id }

// ask sends a request and reads its answer. It returns an error if the connection broke or nothing came.
func (c *clients) ask(ctx context.Context, r *Request) error {
	body, err := json.Marshal(map[string]any{
		"model": Model, "stream": r.Stream, "max_tokens": r.Tokens,
		"messages": []map[string]string{{"role": "user", "content": prompt(r.ID)}},
	})
	if err != nil {
		return err
	}
	if r.Tier != "" {
		body = append(body[:len(body)-1], fmt.Sprintf(`,"service_tier":%q}`, r.Tier)...)
	}
	for _, d := range c.choose() {
		req, err := http.NewRequestWithContext(ctx, "POST", "http://"+d.addr+"/v1/chat/completions", bytes.NewReader(body))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set(RequestHeader, r.ID)
		if r.Kind == KindPoison {
			req.Header.Set(poisonHeader, "1")
		}
		r.Gateway = d.name
		resp, failed := c.http.Do(req)
		if dial, ok := errors.AsType[*net.OpError](failed); ok && dial.Op == "dial" && errors.Is(failed, syscall.ECONNREFUSED) {
			d.open.Store(false)
			err = failed
			continue
		}
		if failed != nil {
			return failed
		}
		defer resp.Body.Close()
		return c.read(r, resp)
	}
	return errors.New("every gateway refused the connection")
}

func (c *clients) read(r *Request, resp *http.Response) error {
	r.Status = resp.StatusCode
	r.NoRetry = resp.Header.Get("X-Should-Retry") == "false"
	if resp.StatusCode != http.StatusOK {
		b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		r.Outcome = Refused
		r.Code, r.Detail = errorOf(b)
		return err
	}
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		return c.readWhole(r, resp.Body)
	}
	return c.readStream(r, resp.Body)
}

// errorOf is the code and the text of an error's body.
func errorOf(b []byte) (code, text string) {
	var e struct {
		Error struct {
			Code    any    `json:"code"`
			Message string `json:"message"`
		} `json:"error"`
	}
	if json.Unmarshal(b, &e) != nil || e.Error.Message == "" {
		return "", string(b)
	}
	if code, ok := e.Error.Code.(string); ok {
		return code, e.Error.Message
	}
	return "", e.Error.Message
}

func (c *clients) readWhole(r *Request, body io.Reader) error {
	b, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	var answer struct {
		Choices []struct {
			Message struct {
				Content string `json:"content"`
			} `json:"message"`
		} `json:"choices"`
	}
	if err := json.Unmarshal(b, &answer); err != nil || len(answer.Choices) != 1 {
		r.Outcome, r.Detail = Wrong, fmt.Sprintf("no answer: %.100q", b)
		return nil
	}
	r.First = c.now()
	t := newTranscript(r)
	t.add(answer.Choices[0].Message.Content)
	t.end()
	return nil
}

func (c *clients) readStream(r *Request, body io.Reader) error {
	t := newTranscript(r)
	last := Seconds(0)
	lines := bufio.NewReader(body)
	for {
		line, err := lines.ReadString('\n')
		data, ok := strings.CutPrefix(strings.TrimRight(line, "\r\n"), "data: ")
		switch {
		case !ok:
		case err != nil && err != io.EOF: // the client has left, or the connection is lost, in the middle of a line
		case t.ended:
			r.Outcome, r.Detail = Repeated, fmt.Sprintf("after the end: %.100q", data)
			return nil
		case data == "[DONE]":
			t.end()
		default:
			var chunk struct {
				Error   json.RawMessage `json:"error"`
				Choices []struct {
					Delta struct {
						Content string `json:"content"`
					} `json:"delta"`
				} `json:"choices"`
			}
			if json.Unmarshal([]byte(data), &chunk) != nil {
				t.wrong(fmt.Sprintf("no event: %.100q", data))
				return nil
			}
			if chunk.Error != nil {
				r.Outcome = Broken
				r.Code, r.Detail = errorOf([]byte(data))
				if r.First == 0 {
					r.Outcome = Refused
				}
				return nil
			}
			for _, choice := range chunk.Choices {
				if choice.Delta.Content == "" {
					continue
				}
				now := c.now()
				if r.First == 0 {
					r.First = now
				} else if now-last > r.Pause {
					r.Pause, r.PauseEnd = now-last, now
				}
				last = now
				t.add(choice.Delta.Content)
			}
		}
		switch {
		case r.Outcome == Wrong:
			return nil
		case err == nil:
		case t.ended && err == io.EOF:
			return nil
		case err == io.EOF:
			return errors.New("the stream ended without [DONE]")
		default:
			return err
		}
	}
}

// transcript compares an answer, as it comes, with the one that is due.
type transcript struct {
	request *Request
	due     string // all of the text
	at      int    // bytes that have come
	ended   bool
}

func newTranscript(r *Request) *transcript {
	return &transcript{request: r, due: sim.Text(sim.PromptHash(prompt(r.ID)), r.Tokens)}
}

func (t *transcript) add(text string) {
	if !strings.HasPrefix(t.due[t.at:], text) {
		t.wrong(fmt.Sprintf("token %d: got %.60q, due was %.60q", t.request.Got, text, t.due[t.at:]))
		return
	}
	t.at += len(text)
	t.request.Got = len(strings.Fields(t.due[:t.at]))
}

func (t *transcript) wrong(why string) { t.request.Outcome, t.request.Detail = Wrong, why }

func (t *transcript) end() {
	t.ended = true
	switch {
	case t.request.Outcome != "":
	case t.at < len(t.due):
		t.request.Outcome, t.request.Detail = Truncated, fmt.Sprintf("%d of %d tokens", t.request.Got, t.request.Tokens)
	default:
		t.request.Outcome = Answered
	}
}
