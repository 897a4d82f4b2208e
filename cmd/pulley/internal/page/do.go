package page

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/cmd/pulley/internal/fleet"
	"github.com/pulley-lb/pulley/plain"
	"github.com/pulley-lb/pulley/policy"
	"github.com/pulley-lb/pulley/policystore"
	"github.com/pulley-lb/pulley/subjects"
)

// order is what an operator wants done: the body of POST /page/do.
type order struct {
	Do     string  `json:"do"`
	Name   string  `json:"name"`   // of the worker, the pool or the route's model; the id of the request
	By     string  `json:"by"`     // who wants it
	Weight float64 `json:"weight"` // of weight
	Reason string  `json:"reason"` // of abort

	// Of shift.
	To    string   `json:"to"`
	Share float64  `json:"percent"` // of all requests per step
	Every float64  `json:"seconds"` // of a step at least
	Abort []string `json:"abort"`   // conditions
}

// refusal is an order that is not carried out, and the status that says why.
type refusal struct {
	status int
	text   string
}

func (r refusal) Error() string { return r.text }

func refuse(status int, format string, args ...any) error {
	return refusal{status, fmt.Sprintf(format, args...)}
}

const (
	orderSize = 16 << 10
	doTimeout = 10 * time.Second

	// nameLength bounds the name of who wants something, in characters.
	nameLength = 64
)

// action carries out one kind of order, and says in a sentence what it has done.
type action func(p *Page, ctx context.Context, o order) (string, error)

var actions = map[string]action{
	"drain":    (*Page).drain,
	"cancel":   (*Page).cancel,
	"cordon":   func(p *Page, ctx context.Context, o order) (string, error) { return p.cordon(ctx, o, true) },
	"uncordon": func(p *Page, ctx context.Context, o order) (string, error) { return p.cordon(ctx, o, false) },
	"weight":   (*Page).weight,
	"pause":    func(p *Page, ctx context.Context, o order) (string, error) { return p.pause(ctx, o, true) },
	"resume":   func(p *Page, ctx context.Context, o order) (string, error) { return p.pause(ctx, o, false) },
	"shift":    (*Page).shift,
	"step": func(p *Page, ctx context.Context, o order) (string, error) {
		return p.stepShift(ctx, o, policy.Route.StepNow)
	},
	"promote": func(p *Page, ctx context.Context, o order) (string, error) {
		return p.stepShift(ctx, o, policy.Route.Promote)
	},
	"abort": (*Page).abort,
}

// do carries out an order and answers with {"text": what was done}, or with a status and {"error": why not}.
func (p *Page) do(w http.ResponseWriter, r *http.Request) {
	text, err := p.obey(w, r)
	answer, status := map[string]string{"text": text}, http.StatusOK
	if err != nil {
		status = http.StatusBadGateway
		if no, ok := errors.AsType[refusal](err); ok {
			status = no.status
		} else if _, ok := errors.AsType[policy.Invalid](err); ok {
			status = http.StatusUnprocessableEntity
		}
		answer = map[string]string{"error": err.Error()}
	}
	b, _ := json.Marshal(answer)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	w.Write(b)
}

func (p *Page) obey(w http.ResponseWriter, r *http.Request) (string, error) {
	if t, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); strings.TrimSpace(t) != "application/json" {
		return "", refuse(http.StatusUnsupportedMediaType, "an order is application/json")
	}
	http.NewResponseController(w).SetReadDeadline(time.Now().Add(doTimeout))
	in := json.NewDecoder(http.MaxBytesReader(w, r.Body, orderSize))
	in.DisallowUnknownFields()
	var o order
	if err := in.Decode(&o); err != nil {
		return "", refuse(http.StatusBadRequest, "the order cannot be read: %s", plain.Error(err))
	}
	act := actions[o.Do]
	switch o.By = strings.TrimSpace(o.By); {
	case act == nil:
		return "", refuse(http.StatusBadRequest, "there is no action %.40q", o.Do)
	case o.Name == "":
		return "", refuse(http.StatusBadRequest, "the order does not say of what")
	case o.By == "" || utf8.RuneCountInString(o.By) > nameLength || strings.ContainsFunc(o.By, func(r rune) bool { return !unicode.IsPrint(r) }):
		return "", refuse(http.StatusBadRequest, "your name, for the history of the policy: 1 to %d printable characters", nameLength)
	}
	ctx, cancel := context.WithTimeout(r.Context(), doTimeout)
	defer cancel()
	text, err := act(p, ctx, o)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) {
		err = errors.New("the broker does not answer; try again")
	}
	if err != nil {
		p.log.Warn("action of an operator on the page failed", "do", o.Do, "name", o.Name, "by", o.By, "err", err)
		return "", err
	}
	p.log.Info("action of an operator on the page", "do", o.Do, "name", o.Name, "by", o.By, "done", text)
	return text, nil
}

// change changes the policy in the name of who gave an order. why is the command that does the same.
func (p *Page) change(ctx context.Context, o order, why string, edit func(*policy.Policy) error) (policystore.Version, error) {
	store, err := policystore.Open(ctx, p.nc)
	if err != nil {
		return policystore.Version{}, err
	}
	same := false
	v, err := store.Update(ctx, o.By, why, func(now *policy.Policy) error {
		before := now.Clone()
		err := edit(now)
		same = reflect.DeepEqual(before, now.Clone())
		return err
	})
	if err == nil && !same {
		p.event(o, subjects.Event{Kind: subjects.EventPolicy, Text: fmt.Sprintf("%s, revision %d", why, v.Revision)})
	}
	return v, err
}

// note writes an order that does not change the policy into its history. What cannot be written there is not done.
func (p *Page) note(ctx context.Context, o order, why string) error {
	store, err := policystore.Open(ctx, p.nc)
	if err != nil {
		return err
	}
	v, err := store.Note(ctx, o.By, why)
	if err == nil {
		p.event(o, subjects.Event{Kind: subjects.EventPolicy, Text: fmt.Sprintf("%s, revision %d", why, v.Revision)})
	}
	return err
}

func (p *Page) event(o order, e subjects.Event) {
	e.At, e.From = time.Now().UTC(), "page "+o.By
	fleet.PublishJSON(p.nc, subjects.EventSubject(e.Kind), e)
}

// worker returns the live worker with an id, or the first one with a name.
func (p *Page) worker(named string) (*subjects.Heartbeat, error) {
	view := p.view.Load()
	if view == nil {
		return nil, refuse(http.StatusServiceUnavailable, "the gateway is starting")
	}
	found := fleet.FirstMatches((*view)().Workers, func(h *subjects.Heartbeat) bool { return h.Worker == named }, func(h *subjects.Heartbeat) bool { return h.Name == named })
	if len(found) == 0 {
		return nil, refuse(http.StatusNotFound, "no worker %s: it may have just left", named)
	}
	return found[0], nil
}

func (p *Page) drain(ctx context.Context, o order) (string, error) {
	h, err := p.worker(o.Name)
	if err != nil {
		return "", err
	}
	if err := p.note(ctx, o, "worker drain "+cli.ShellWord(h.Name)); err != nil {
		return "", err
	}
	done, err := fleet.Call[subjects.Outcome](ctx, p.nc, subjects.WorkerDrain(h.Worker), struct{}{}, fleet.AskTimeout)
	switch {
	case errors.Is(err, nats.ErrNoResponders), errors.Is(err, fleet.ErrNoAnswer):
		return "", refuse(http.StatusNotFound, "worker %s does not answer: it may have just left, or the gateway's NATS user may not publish to pulley.drain.>", h.Name)
	case err != nil:
		return "", err
	case done.Error != "":
		return "", refuse(http.StatusConflict, "worker %s: %s", h.Name, done.Error)
	}
	return fmt.Sprintf("worker %s is draining", h.Name), nil
}

func (p *Page) cancel(ctx context.Context, o order) (string, error) {
	if _, err := subjects.ParseID(o.Name); err != nil {
		return "", refuse(http.StatusBadRequest, "%.40q is no id of a request", o.Name)
	}
	if err := p.note(ctx, o, "request cancel "+o.Name); err != nil {
		return "", err
	}
	done, err := fleet.CallRequest[subjects.Outcome](ctx, p.nc, subjects.DoCancel, subjects.RequestQuery{ID: o.Name, By: o.By})
	switch {
	case err != nil:
		return "", refuse(http.StatusNotFound, "%v", err)
	case done.Error != "":
		return "", refuse(http.StatusConflict, "request %s: %s", o.Name, done.Error)
	}
	return fmt.Sprintf("request %s cancelled", o.Name), nil
}

// editWorker changes the settings of a worker that is live or has some.
func (p *Page) editWorker(ctx context.Context, o order, why string, edit func(*policy.Worker)) error {
	h, notFound := p.worker(o.Name)
	_, err := p.change(ctx, o, why, func(now *policy.Policy) error {
		name := o.Name
		if notFound == nil {
			name = h.Name
		} else if _, set := now.Workers[name]; !set {
			return notFound
		}
		now.EditWorker(name, edit)
		return nil
	})
	return err
}

func (p *Page) cordon(ctx context.Context, o order, on bool) (string, error) {
	verb := "uncordon"
	if on {
		verb = "cordon"
	}
	err := p.editWorker(ctx, o, "worker "+verb+" "+cli.ShellWord(o.Name), func(w *policy.Worker) { w.Cordoned = on })
	return fmt.Sprintf("worker %s %sed", o.Name, verb), err
}

func (p *Page) weight(ctx context.Context, o order) (string, error) {
	err := p.editWorker(ctx, o, fmt.Sprintf("worker weight %s %g", cli.ShellWord(o.Name), o.Weight), func(w *policy.Worker) { w.Weight = o.Weight })
	if o.Weight == 0 {
		return fmt.Sprintf("worker %s has the weight again that it was started with", o.Name), err
	}
	return fmt.Sprintf("worker %s has weight %g", o.Name, o.Weight), err
}

func (p *Page) pause(ctx context.Context, o order, on bool) (string, error) {
	verb, done := "resume", "resumed"
	if on {
		verb, done = "pause", "paused"
	}
	served, err := fleet.ServedPools(ctx, p.nc)
	if err != nil {
		return "", err
	}
	_, err = p.change(ctx, o, "pool "+verb+" "+cli.ShellWord(o.Name), func(now *policy.Policy) error {
		if _, set := now.Pools[o.Name]; !set && !slices.Contains(served, o.Name) {
			return refuse(http.StatusNotFound, "no pool %s", o.Name)
		}
		now.EditPool(o.Name, func(pool *policy.Pool) { pool.Paused = on })
		return nil
	})
	return fmt.Sprintf("pool %s %s", o.Name, done), err
}

func (p *Page) shift(ctx context.Context, o order) (string, error) {
	if o.To == "" || !(o.Every > 0 && o.Every < math.MaxInt32) {
		return "", refuse(http.StatusBadRequest, "a shift needs the pool that it goes to, and how many seconds a step lasts")
	}
	s := policy.Shift{To: o.To, By: o.Share, Every: policy.Duration(o.Every * float64(time.Second)), MinSample: policy.DefaultMinSample}
	why := []string{"route", "shift", cli.ShellWord(o.Name), "--to", cli.ShellWord(o.To), "--by", fmt.Sprintf("%g%%", o.Share), "--every", s.Every.String()}
	for _, text := range o.Abort {
		if _, err := policy.ParseCondition(text); err != nil {
			return "", refuse(http.StatusUnprocessableEntity, "%v", err)
		}
		s.Abort = append(s.Abort, policy.Condition(text))
		why = append(why, "--abort-if", cli.ShellWord(text))
	}
	_, err := p.change(ctx, o, strings.Join(why, " "), func(now *policy.Policy) error {
		_, err := now.StartShift(o.Name, s, time.Now())
		if err != nil {
			return refuse(http.StatusConflict, "route %s: %v", o.Name, err)
		}
		return nil
	})
	return fmt.Sprintf("shift of %s to %s started", o.Name, o.To), err
}

func (p *Page) abort(ctx context.Context, o order) (string, error) {
	why := o.Reason
	if why == "" {
		why = "by " + o.By
	}
	return p.stepShift(ctx, o, func(r policy.Route, now time.Time) (policy.Route, string) { return r.AbortShift(why, now) })
}

// stepShift applies a step to a shift that runs: the next one, its promotion or its abort.
func (p *Page) stepShift(ctx context.Context, o order, step func(policy.Route, time.Time) (policy.Route, string)) (string, error) {
	done := ""
	why := "route " + o.Do + " " + cli.ShellWord(o.Name)
	if o.Do == "step" {
		why = "route shift " + cli.ShellWord(o.Name) + " --now"
	}
	_, err := p.change(ctx, o, why, func(now *policy.Policy) error {
		r, ok := now.Routes[o.Name]
		if !ok {
			return refuse(http.StatusNotFound, "no route %s", o.Name)
		}
		if r, done = step(r, time.Now()); done == "" {
			return refuse(http.StatusConflict, "route %s: no shift is running", o.Name)
		}
		now.Routes[o.Name] = r
		return nil
	})
	if err == nil {
		p.event(o, subjects.Event{Kind: subjects.EventShift, Model: o.Name, Text: fmt.Sprintf("route %s: %s", o.Name, done)})
	}
	return fmt.Sprintf("shift of %s %s", o.Name, done), err
}
