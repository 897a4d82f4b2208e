// Package fleet reads the state of a running Pulley from its broker: workers,
// requests, queues, pools, GPUs, dead letters and the policy. A Snapshot has all of
// it at one moment, with findings about what is wrong.
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
	// askWait bounds how long a verb waits for the gateways' answers.
	AskTimeout = 1500 * time.Millisecond

	// askRest is how long it waits for the others after one has answered: they
	// are as quick, or gone.
	askRest = 200 * time.Millisecond

	// orderWait bounds how long gateways may take to do what they are told.
	commandTimeout = 30 * time.Second
)

// ErrNoGateway says that nobody answers the verbs.
var ErrNoGateway = cli.NotFoundError{Err: errors.New("no gateway on this broker: start one with 'pulley gateway' or 'pulley up'")}

var ErrNoAnswer = errors.New("nobody answers")

// Ask collects the lists that gateways answer a question with. With all it
// waits for every gateway, else for the first.
func Ask[T any](ctx context.Context, nc *nats.Conn, subject string, all bool) ([]T, error) {
	list, _, err := askEach[T](ctx, nc, subject, all)
	return list, err
}

// askEach is ask, and says how many gateways have answered.
func askEach[T any](ctx context.Context, nc *nats.Conn, subject string, all bool) (list []T, answered int, err error) {
	ctx, cancel := context.WithTimeout(ctx, AskTimeout)
	defer cancel()
	inbox := nc.NewInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		return nil, 0, err
	}
	defer sub.Unsubscribe()
	if err := nc.PublishRequest(subject, inbox, nil); err != nil {
		return nil, 0, err
	}
	list = []T{}
	waiting := ctx
	for {
		m, err := sub.NextMsgWithContext(waiting)
		switch {
		case errors.Is(err, nats.ErrNoResponders):
			return nil, 0, err
		case errors.Is(err, context.DeadlineExceeded) && answered > 0:
			return list, answered, nil
		case errors.Is(err, context.DeadlineExceeded):
			return nil, 0, fmt.Errorf("no gateway has answered within %v", AskTimeout)
		case err != nil:
			return nil, 0, err
		}
		if len(m.Data) == 0 { // the end of one gateway's list
			if answered++; !all {
				return list, answered, nil
			}
			var rest context.CancelFunc
			waiting, rest = context.WithTimeout(ctx, askRest)
			defer rest()
			continue
		}
		var some []T
		if err := subjects.Unmarshal(m.Data, &some); err != nil {
			return nil, 0, fmt.Errorf("answer of a gateway: %w", err)
		}
		list = append(list, some...)
	}
}

// Call tells the one who is concerned to do something. Nobody else answers, so
// that silence says that there is none: errSilence.
func Call[T any](ctx context.Context, nc *nats.Conn, subject string, order any, within time.Duration) (answer T, err error) {
	b, err := subjects.Marshal(order)
	if err != nil {
		return answer, err
	}
	waiting, cancel := context.WithTimeout(ctx, within)
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

// CallAll tells every gateway to do something and adds up what they did.
func CallAll(ctx context.Context, nc *nats.Conn, subject string, order any) (done int, err error) {
	_, gateways, err := askEach[subjects.Heartbeat](ctx, nc, subjects.AskWorkers, true)
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
	b, err := subjects.Marshal(order)
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

// PublishJSON is for what nobody answers.
func PublishJSON(nc *nats.Conn, subject string, value any) {
	if b, err := subjects.Marshal(value); err == nil {
		nc.Publish(subject, b)
	}
}
