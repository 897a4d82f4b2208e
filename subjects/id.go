package subjects

import (
	"fmt"

	"github.com/google/uuid"
)

// ID is a request's id, a UUIDv7.
type ID = uuid.UUID

// NewID makes a request id.
func NewID() ID { return uuid.Must(uuid.NewV7()) }

// ParseID reads an id in its canonical form only.
func ParseID(s string) (ID, error) {
	if len(s) != 36 {
		return ID{}, fmt.Errorf("request id %q: want a UUID", s)
	}
	id, err := uuid.Parse(s)
	if err != nil {
		return ID{}, fmt.Errorf("request id %q: %w", s, err)
	}
	return id, nil
}
