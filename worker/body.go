package worker

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	bodyTimeout = 5 * time.Second // for one piece, from a gateway that is there

	// maxBodyAtOnce is what a size that a message claims may cost before the
	// bytes are there.
	maxBodyAtOnce = 64 << 20
)

// requestOf is the request of a delivery. A gateway of this process has it at hand;
// nobody may change it.
func (w *Worker) requestOf(m *nats.Msg) (*subjects.Request, error) {
	if id, gateway, ok := subjects.Sender(m); ok {
		if gw, ok := w.cfg.Local.Gateway(gateway); ok {
			if req := gw.Request(id); req != nil {
				return req, nil
			}
		}
	}
	return subjects.ParseRequest(m)
}

// body is the request's body: it came along, or is fetched from the gateway
// piece by piece.
func (w *Worker) body(a *attempt) ([]byte, error) {
	if !a.req.ByReference {
		return a.msg.Data, nil
	}
	body := make([]byte, 0, min(a.req.BodySize, maxBodyAtOnce))
	for int64(len(body)) < a.req.BodySize {
		want := subjects.MustMarshal(subjects.BodyRequest{ID: a.req.ID, Offset: int64(len(body))})
		piece, err := w.request(a, subjects.GatewayBody(a.req.Gateway), want)
		if err != nil {
			return nil, fmt.Errorf("fetch body at %d of %d bytes: %w", len(body), a.req.BodySize, err)
		}
		if len(piece) == 0 || int64(len(body)+len(piece)) > a.req.BodySize {
			return nil, fmt.Errorf("fetch body at %d of %d bytes: the gateway sent %d", len(body), a.req.BodySize, len(piece))
		}
		body = append(body, piece...)
	}
	return body, nil
}

// request asks a gateway and waits for the answer, as long as the attempt goes
// on.
func (w *Worker) request(a *attempt, subject string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(a.ctx, bodyTimeout)
	defer cancel()
	m, err := w.nc.RequestWithContext(ctx, subject, body)
	if err != nil {
		return nil, err
	}
	return m.Data, nil
}
