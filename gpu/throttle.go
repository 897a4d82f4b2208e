package gpu

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// Throttle is why the clocks are not at their highest, as NVML's bits. In JSON it
// is a list of names.
type Throttle uint64

// The reasons.
const (
	ThrottleIdle          Throttle = 1 << iota // nothing to do
	ThrottleAppClocks                          // clocks that somebody set
	ThrottlePowerCap                           // at the power limit: normal under load
	ThrottleHardware                           // the board slows down: heat, power or failure
	ThrottleSyncBoost                          // as slow as another GPU of its group
	ThrottleThermal                            // the driver slows down to stay cool
	ThrottleHardwareHeat                       // too hot: the board slows down
	ThrottleHardwarePower                      // the power supply says so
	ThrottleDisplay                            // clocks that a display needs
)

var throttleNames = []string{"idle", "app_clocks", "power_cap", "hw_slowdown", "sync_boost", "thermal", "hw_thermal", "hw_power_brake", "display"}

// AllThrottle is every reason that has a name, with that name.
func AllThrottle() map[Throttle]string {
	all := make(map[Throttle]string, len(throttleNames))
	for i, name := range throttleNames {
		all[1<<i] = name
	}
	return all
}

// Hard says that the board itself slows down: it is about half as fast.
func (t Throttle) Hard() bool {
	return t&(ThrottleHardware|ThrottleHardwareHeat|ThrottleHardwarePower) != 0
}

// Hot says that the driver slows the GPU down to keep it cool.
func (t Throttle) Hot() bool { return t&ThrottleThermal != 0 }

// Reasons are the names of the bits, those unknown as numbers.
func (t Throttle) Reasons() []string {
	reasons := []string{}
	for i, name := range throttleNames {
		if t&(1<<i) != 0 {
			reasons = append(reasons, name)
		}
	}
	if rest := t &^ (1<<len(throttleNames) - 1); rest != 0 {
		reasons = append(reasons, fmt.Sprintf("%#x", uint64(rest)))
	}
	return reasons
}

func (t Throttle) String() string {
	if t == 0 {
		return "none"
	}
	return strings.Join(t.Reasons(), ",")
}

// MarshalJSON is a list of names.
func (t Throttle) MarshalJSON() ([]byte, error) { return json.Marshal(t.Reasons()) }

// UnmarshalJSON takes what MarshalJSON gives.
func (t *Throttle) UnmarshalJSON(b []byte) error {
	var reasons []string
	if err := json.Unmarshal(b, &reasons); err != nil {
		return err
	}
	*t = 0
next:
	for _, r := range reasons {
		for i, name := range throttleNames {
			if r == name {
				*t |= 1 << i
				continue next
			}
		}
		bits, err := strconv.ParseUint(r, 0, 64)
		if err != nil {
			return fmt.Errorf("throttle reason %q: unknown", r)
		}
		*t |= Throttle(bits)
	}
	return nil
}
