// Package fleet reads the state of a running Pulley from its broker: workers, requests, queues, pools, GPUs, dead
// letters and the policy. A Snapshot has all of it at one moment, with findings about what is wrong.
package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pulley-lb/pulley/cmd/pulley/internal/cli"
	"github.com/pulley-lb/pulley/subjects"
)

const (
	// AskTimeout bounds how long a verb waits for the first answer.
	AskTimeout = 1500 * time.Millisecond

	// furtherAnswers is how long AskAll waits for the other gateways after each answer: a gateway that is alive answers
	// as quickly as the first.
	furtherAnswers = 200 * time.Millisecond

	// commandTimeout bounds how long gateways may take to carry out a command.
	commandTimeout = 30 * time.Second
)

// ErrNoGateway says that no gateway answers on this broker.
var ErrNoGateway = cli.NotFoundf("no gateway on this broker: start one with 'pulley gateway' or 'pulley up'")

// ErrNoAnswer says that no part answered a Call in time.
var ErrNoAnswer = errors.New("no answer")

// AskAny asks the gateways for a list, and returns the first answer. It is for lists that every gateway has. Its error
// is nats.ErrNoResponders if there is no gateway.
func AskAny[T any](ctx context.Context, nc *nats.Conn, subject string) ([]T, error) {
	list, _, err := ask[T](ctx, nc, subject, false)
	return list, err
}

// AskAll asks every gateway for a list, and returns the lists of all joined. Its error is nats.ErrNoResponders if there
// is no gateway.
func AskAll[T any](ctx context.Context, nc *nats.Conn, subject string) ([]T, error) {
	list, _, err := ask[T](ctx, nc, subject, true)
	return list, err
}

// ask returns the answers, and the headers at the end of the answer of each gateway.
func ask[T any](ctx context.Context, nc *nats.Conn, subject string, all bool) (list []T, ends []nats.Header, err error) {
	ctx, cancel := context.WithTimeout(ctx, AskTimeout)
	defer cancel()
	inbox := nc.NewInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		return nil, nil, err
	}
	defer sub.Unsubscribe()
	if err := nc.PublishRequest(subject, inbox, nil); err != nil {
		return nil, nil, err
	}
	list = []T{}
	waiting := ctx
	for {
		m, err := sub.NextMsgWithContext(waiting)
		switch {
		case errors.Is(err, nats.ErrNoResponders):
			return nil, nil, err
		case errors.Is(err, context.DeadlineExceeded) && len(ends) > 0:
			return list, ends, nil
		case errors.Is(err, context.DeadlineExceeded):
			return nil, nil, fmt.Errorf("no gateway answered within %v", AskTimeout)
		case err != nil:
			return nil, nil, err
		}
		if len(m.Data) == 0 { // the end of one gateway's list
			if ends = append(ends, m.Header); !all {
				return list, ends, nil
			}
			var stop context.CancelFunc
			waiting, stop = context.WithTimeout(ctx, furtherAnswers)
			defer stop()
			continue
		}
		var part []T
		if err := subjects.Unmarshal(m.Data, &part); err != nil {
			return nil, nil, fmt.Errorf("answer of a gateway: %w", err)
		}
		list = append(list, part...)
	}
}

// Call sends a command to the one part that can carry it out, and returns its answer. Other parts do not answer, so
// that a timeout means that there is no such part: the error is then ErrNoAnswer.
func Call[T any](ctx context.Context, nc *nats.Conn, subject string, command any, timeout time.Duration) (answer T, err error) {
	b, err := subjects.Marshal(command)
	if err != nil {
		return answer, err
	}
	waiting, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	m, err := nc.RequestWithContext(waiting, subject, b)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return answer, ErrNoAnswer
	}
	if err != nil {
		return answer, err
	}
	if err := subjects.Unmarshal(m.Data, &answer); err != nil {
		return answer, fmt.Errorf("answer on %s: %w", subject, err)
	}
	return answer, nil
}

// CallAll sends a command to every gateway, and returns the sum of what they did.
func CallAll(ctx context.Context, nc *nats.Conn, subject string, command any) (done int, err error) {
	_, ends, err := ask[subjects.Heartbeat](ctx, nc, subjects.AskWorkers, true)
	gateways := len(ends)
	if errors.Is(err, nats.ErrNoResponders) {
		return 0, ErrNoGateway
	}
	if err != nil {
		return 0, fmt.Errorf("ask the gateways: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	inbox := nc.NewInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		return 0, err
	}
	defer sub.Unsubscribe()
	b, err := subjects.Marshal(command)
	if err != nil {
		return 0, err
	}
	if err := nc.PublishRequest(subject, inbox, b); err != nil {
		return 0, err
	}
	var errs []error
	for n := range gateways {
		m, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return done, errors.Join(append(errs, fmt.Errorf("%d of %d gateways have not answered: %w", gateways-n, gateways, err))...)
		}
		var o subjects.Outcome
		if err := subjects.Unmarshal(m.Data, &o); err != nil {
			errs = append(errs, fmt.Errorf("answer of a gateway: %w", err))
		} else if o.Error != "" {
			errs = append(errs, fmt.Errorf("gateway %s: %s", o.From, o.Error))
		}
		done += o.Count
	}
	return done, errors.Join(errs...)
}

// PublishJSON publishes a value without waiting for an answer. An error is dropped.
func PublishJSON(nc *nats.Conn, subject string, value any) {
	if b, err := subjects.Marshal(value); err == nil {
		nc.Publish(subject, b)
	}
}
