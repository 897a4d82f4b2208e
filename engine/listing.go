package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"time"
)

const (
	listEvery   = 5 * time.Second        // while the engine's answers are good
	listAgain   = 500 * time.Millisecond // while they are not
	listTimeout = 2 * time.Second
	listOfAll   = "list of models" // in costs
)

// A Listing is an engine's answer to GET /v1/models. Every engine has that page, whatever its dialect, and answers it by the
// same way as requests: an engine that lists its models can be called.
type Listing struct {
	Asked  time.Time // when the question was sent
	Status int       // HTTP status of the answer; 0 if there was none
	Models []string  // names in the order of the engine; nil with Err
	Facts  []Facts   // what the list says of each of them
	Err    error     // why there is no list, or why the engine cannot be called although it has one
	Late   bool      // there was no answer in time
	// Trouble is the kind of obstacle that Err is, if someone has to remove it.
	Trouble Trouble
}

// Facts are what a list of models says of one of them. A value of zero was not given. Numbers below 1 or above 2⁵³ do not count.
type Facts struct {
	Created int64  // Unix seconds
	OwnedBy string // at most 64 bytes
	Root    string // what the engine loaded for it; several names of one model have the same: vLLM
	Parent  string // the model that it is an adapter (LoRA) of: vLLM
	// The length of a prompt with its answer, in tokens, under the names that engines give it.
	MaxModelLen      int64 // max_model_len: vLLM, SGLang
	ContextLength    int64 // context_length
	MaxContextLength int64 // max_context_length: LM Studio
	ContextWindow    int64 // context_window
	MetaContext      int64 // meta.n_ctx: llama.cpp
	MetaTrained      int64 // meta.n_ctx_train: llama.cpp
}

// Adapters returns the names of the adapters that the list has beside their parent, by the name of that.
func (l *Listing) Adapters() map[string][]string {
	var all map[string][]string
	for i, name := range l.Models[:min(len(l.Models), len(l.Facts))] {
		if parent := l.Facts[i].Parent; parent != "" && parent != name && slices.Contains(l.Models, parent) {
			if all == nil {
				all = make(map[string][]string)
			}
			all[parent] = append(all[parent], name)
		}
	}
	return all
}

// Bases returns the models of the list that are no adapters, in its order, each under one of its names: preferred if that is
// one, or else the first.
func (l *Listing) Bases(preferred string) []string {
	adapters := make(map[string]bool)
	for _, names := range l.Adapters() {
		for _, name := range names {
			adapters[name] = true
		}
	}
	var bases []string
	at := make(map[string]int) // by root
	for i, name := range l.Models {
		root := ""
		if i < len(l.Facts) {
			root = l.Facts[i].Root
		}
		first, again := at[root]
		switch {
		case adapters[name], slices.Contains(bases, name):
		case root == "" || !again:
			at[root] = len(bases)
			bases = append(bases, name)
		case name == preferred:
			bases[first] = name
		}
	}
	return bases
}

// Look makes Run ask for the models and the health now. If a question is under way, another one follows it, since the
// answer to the first may be older than what made the caller look.
func (s *Scraper) Look() {
	for _, wake := range []chan struct{}{s.look, s.check} {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
}

// Doubt makes Run ask for the models now, and find out whether the engine accepts the credentials: some engines answer
// GET /v1/models to everybody. Until the engine has accepted them, each Listing has an Err of TroubleCredentials.
func (s *Scraper) Doubt() {
	s.doubted.Store(true)
	s.Look()
}

// listLoop asks for the models until ctx ends. It runs beside the scrapes: neither waits for the other's answers.
func (s *Scraper) listLoop(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	late := 0 // consecutive answers that did not come in time
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-s.look:
		}
		l := s.list(ctx)
		if ctx.Err() != nil {
			return
		}
		took, usual := time.Since(l.Asked), listAgain
		if late++; !l.Late {
			late = 0
		}
		switch {
		case s.cfg.OnListing(l):
			usual = listEvery
		case l.Late: // each question of which the answer is not awaited costs the engine one
			usual = backoff(late)
		}
		pause := s.costs.ask(listOfAll, took, usual, listWeight)
		if l.Late { // what held it up may have been short: the first questions after that need not wait for its price
			pause = min(pause, listAgain<<min(late-1, 16))
		}
		timer.Reset(pause)
	}
}

func (s *Scraper) list(ctx context.Context) Listing {
	l := Listing{Asked: time.Now()}
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	var body bytes.Buffer
	resp, err := s.ask(ctx, http.MethodGet, s.base+"/v1/models", &body)
	if resp != nil {
		l.Status = resp.StatusCode
	}
	if err == nil {
		l.Models, l.Facts, err = readListing(body.Bytes())
	}
	if err == nil && s.doubted.Load() {
		err = s.tryCredentials(ctx)
	}
	l.Err, l.Trouble = err, TroubleOf(err)
	l.Late = err != nil && l.Status == 0 && outOfTime(err)
	if l.Status != 0 && l.Status != http.StatusOK {
		l.Err = fmt.Errorf("GET /v1/models: %s", resp.Status)
		if e, ok := errors.AsType[*statusError](err); ok {
			if e.location != "" {
				l.Err = fmt.Errorf("%w, to %s", l.Err, e.location)
			}
			l.Err = fmt.Errorf("%w%s", l.Err, afterStatus(e.body))
		}
	}
	return l
}

// tryCredentials makes a call that only the right credentials are let in for, and that the engine refuses then because it
// asks for nothing.
func (s *Scraper) tryCredentials(ctx context.Context) error {
	_, err := s.call(ctx, http.MethodPost, "/v1/chat/completions", struct{}{})
	e, answered := errors.AsType[*statusError](err)
	switch {
	case answered && e.code == http.StatusUnauthorized:
		return err
	case err == nil || answered:
		s.doubted.Store(false)
	}
	return nil // an engine that does not answer this may answer other calls
}

// readListing reads a list of models. Only names have to be as OpenAI has them.
func readListing(page []byte) (names []string, facts []Facts, err error) {
	var list struct {
		Data []struct {
			ID               string          `json:"id"`
			Created          json.RawMessage `json:"created"`
			OwnedBy          json.RawMessage `json:"owned_by"`
			Root             json.RawMessage `json:"root"`
			Parent           json.RawMessage `json:"parent"`
			MaxModelLen      json.RawMessage `json:"max_model_len"`
			ContextLength    json.RawMessage `json:"context_length"`
			MaxContextLength json.RawMessage `json:"max_context_length"`
			ContextWindow    json.RawMessage `json:"context_window"`
			Meta             json.RawMessage `json:"meta"`
		} `json:"data"`
	}
	if err := json.Unmarshal(page, &list); err != nil {
		return nil, nil, notJSON("GET /v1/models", page, err)
	}
	names, facts = make([]string, 0, len(list.Data)), make([]Facts, 0, len(list.Data))
	for _, m := range list.Data {
		var meta struct {
			Context json.RawMessage `json:"n_ctx"`
			Trained json.RawMessage `json:"n_ctx_train"`
		}
		json.Unmarshal(m.Meta, &meta)
		f := Facts{
			Created: counted(m.Created), MaxModelLen: counted(m.MaxModelLen), ContextLength: counted(m.ContextLength),
			MaxContextLength: counted(m.MaxContextLength), ContextWindow: counted(m.ContextWindow),
			MetaContext: counted(meta.Context), MetaTrained: counted(meta.Trained),
		}
		if json.Unmarshal(m.OwnedBy, &f.OwnedBy) != nil || len(f.OwnedBy) > 64 {
			f.OwnedBy = ""
		}
		json.Unmarshal(m.Root, &f.Root) // they may be null
		json.Unmarshal(m.Parent, &f.Parent)
		names, facts = append(names, m.ID), append(facts, f)
	}
	return names, facts, nil
}

// counted is a whole number of JSON from 1 to 2⁵³, else 0.
func counted(v json.RawMessage) int64 {
	var n float64
	if json.Unmarshal(v, &n) != nil || n < 1 || n > 1<<53 || n != math.Trunc(n) {
		return 0
	}
	return int64(n)
}
