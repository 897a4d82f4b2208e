package gateway

import (
	"cmp"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/pulley-lb/pulley/api"
)

// patience is how long a client waits for what. A read timeout is not a deadline: it bounds the wait for the first byte
// of an answer and each silence after it. An answer that makes progress may take any time, unless there is a total.
type patience struct {
	silence time.Duration // from the request to the first byte of its answer, and from one byte to the next; 0: any time
	total   time.Duration // for the whole answer; 0: any time
	source  string        // what sets silence, in words
}

// The SDKs' headers that give a timeout in seconds: of OpenAI's and Anthropic's for Python, and of those for other
// languages.
var timeoutHeaders = [...]string{"X-Stainless-Read-Timeout", "X-Stainless-Timeout"}

// sdkGrace is how much longer than an SDK's timeout the gateway waits. The SDK ends its call by itself, and reports that as a
// timeout of its own, as it does without a gateway; an error of the gateway at the same moment would overtake that. So the
// gateway's own end is for clients that do not close their connection.
const sdkGrace = time.Second

// patienceOf is the patience of a call. x-request-timeout, in seconds or as 1m30s, is a total. The timeout of an SDK is
// one for an answer that does not stream, and else bounds silence. Without an SDK's, the deadline of the tier does. No
// time is above limit.
func patienceOf(h http.Header, stream bool, deadline, limit time.Duration) (patience, error) {
	p := patience{silence: min(deadline, limit), source: "the deadline of the tier"}
	if v := h.Get("X-Request-Timeout"); v != "" {
		d, err := time.ParseDuration(v)
		if secs, ferr := strconv.ParseFloat(v, 64); ferr == nil {
			d, err = time.Duration(min(secs, 1e9)*float64(time.Second)), nil
		}
		if err != nil || d <= 0 {
			return p, api.BadRequest("x-request-timeout", "x-request-timeout %s: must be seconds, such as 30, or a duration, such as 1m30s", api.Quote(v))
		}
		p.total = min(d, limit)
		p.silence = p.total
	}
	for _, name := range timeoutHeaders {
		v := h.Get(name)
		if v == "" { // ParseFloat would allocate an error
			continue
		}
		secs, err := strconv.ParseFloat(v, 64)
		if err != nil || !(secs > 0 && secs < 1e9) {
			continue
		}
		d := min(time.Duration(secs*float64(time.Second))+sdkGrace, limit)
		if stream {
			p.silence, p.source = d, "the client's "+name
		} else {
			p.total = min(d, cmp.Or(p.total, d))
			p.silence = p.total
		}
		break
	}
	if p.total > 0 {
		p.silence = min(p.silence, p.total)
	}
	return p, nil
}

// until is when the client's patience ends with an answer whose last byte came at last.
func (p patience) until(arrived, last time.Time) time.Time {
	end := last.Add(p.silence)
	if p.total > 0 {
		if whole := arrived.Add(p.total); whole.Before(end) {
			return whole
		}
	}
	return end
}

// late is the error of a request whose client has no patience left at now. doing says what the request did.
func (p patience) late(arrived, now time.Time, doing string) *api.Error {
	message := fmt.Sprintf("no byte of the answer came for %v, which is as long as %s allows, while %s", p.silence, p.source, doing)
	if p.total > 0 && now.Sub(arrived) >= p.total {
		message = fmt.Sprintf("the request's deadline of %v passed while %s", p.total.Round(time.Millisecond), doing)
	}
	return api.Errorf(http.StatusGatewayTimeout, "deadline_exceeded", "%s", message)
}
