//go:build !linux

package parts

import "fmt"

// Usage returns nothing: this system does not tell it.
func (p *Process) Usage() Usage { return Usage{} }

// ResidentBytes returns an error: this system does not tell it.
func (p *Process) ResidentBytes() (int64, error) {
	return 0, fmt.Errorf("memory of %s: not known on this system", p.Name)
}
