package sim

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// orders are the misbehaviours that a request asks for.
type orders struct {
	close  bool
	fail   int // status; 0: do not fail
	refuse int // status; 0: do not refuse
	hang   bool
	cut    bool
	after  int // tokens before the hang or cut
	ttft   time.Duration
	early  bool // send the header before the first token
}

// orders returns those of the header, or draws them.
func (s *Engine) orders(h http.Header) (orders, error) {
	lines, ok := h["X-Sim"]
	if !ok {
		return s.draw(), nil
	}
	o, name, err := parseOrders(strings.Join(lines, ","), s.cfg.RefuseStatus)
	if err != nil {
		e := errorOf(http.StatusBadRequest, err.Error())
		e.param = new("x-sim")
		return orders{}, e
	}
	if name != "" && name != s.cfg.Name {
		return s.draw(), nil
	}
	return o, nil
}

func (s *Engine) draw() orders {
	c := &s.cfg
	if c.Fail+c.Hang+c.Cut+c.Refuse == 0 {
		return orders{}
	}
	s.drawMu.Lock()
	x := s.draws.Float64()
	s.drawMu.Unlock()
	if x -= c.Fail; x < 0 {
		return orders{fail: http.StatusInternalServerError}
	}
	if x -= c.Hang; x < 0 {
		return orders{hang: true}
	}
	if x -= c.Cut; x < 0 {
		return orders{cut: true, after: c.CutAfter}
	}
	if x -= c.Refuse; x < 0 {
		return orders{refuse: c.RefuseStatus}
	}
	return orders{}
}

// parseOrders parses an x-sim header. on is the engine that it applies to, if it names one.
func parseOrders(header string, refuseStatus int) (o orders, on string, err error) {
	for field := range strings.SplitSeq(header, ",") {
		name, value, hasValue := strings.Cut(strings.TrimSpace(field), "=")
		var err error
		switch name {
		case "":
			// an empty element of a list
		case "close":
			o.close = true
		case "early-header":
			o.early = true
		case "hang":
			o.hang, o.after = true, 0
		case "fail":
			o.fail, err = orderedStatus(value, hasValue, http.StatusInternalServerError)
		case "refuse":
			o.refuse, err = orderedStatus(value, hasValue, refuseStatus)
			if err == nil && o.refuse != http.StatusTooManyRequests && o.refuse != http.StatusServiceUnavailable {
				err = errors.New("must be 429 or 503")
			}
		case "hang-after":
			o.hang, o.cut = true, false
			o.after, err = count(value)
		case "cut-after":
			o.cut, o.hang = true, false
			o.after, err = count(value)
		case "ttft":
			if o.ttft, err = time.ParseDuration(value); err == nil && o.ttft < 0 {
				err = errors.New("must not be negative")
			}
		case "on":
			on = value
		default:
			err = errors.New("unknown order")
		}
		if err != nil {
			return orders{}, "", fmt.Errorf("x-sim: %q: %w", strings.TrimSpace(field), err)
		}
	}
	return o, on, nil
}

func orderedStatus(value string, hasValue bool, otherwise int) (int, error) {
	if !hasValue {
		return otherwise, nil
	}
	status, err := strconv.Atoi(value)
	if err != nil || status < 400 || status > 599 {
		return 0, errors.New("must be a status from 400 to 599")
	}
	return status, nil
}

func count(value string) (int, error) {
	n, err := strconv.Atoi(value)
	if err != nil || n < 0 {
		return 0, errors.New("must be a number of tokens")
	}
	return n, nil
}
