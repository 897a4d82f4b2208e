package bench

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"time"
)

// Arrival is one request of an open loop: when it is due after the start, and its lengths.
type Arrival struct {
	At                        time.Duration
	InputTokens, OutputTokens int
}

// Trace is a recorded load, in the order of arrival.
type Trace []Arrival

// ReadTraceFile reads a trace from a CSV file; see [ReadTrace].
func ReadTraceFile(name string) (Trace, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("trace: %w", err)
	}
	defer f.Close()
	trace, err := ReadTrace(f)
	if err != nil {
		return nil, fmt.Errorf("trace %s: %w", name, err)
	}
	return trace, nil
}

// ReadTrace reads CSV with a header that has arrival_seconds, input_tokens and output_tokens; other columns are
// ignored. Times may start anywhere at or after zero and must not run backwards. Lengths of 0 become 1.
func ReadTrace(r io.Reader) (Trace, error) {
	rows := csv.NewReader(r)
	rows.ReuseRecord = true
	header, err := rows.Read()
	if err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	columns, err := traceColumns(header)
	if err != nil {
		return nil, err
	}
	var trace Trace
	for {
		row, err := rows.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		line, _ := rows.FieldPos(0)
		arrival, err := parseArrival(row[columns[0]], row[columns[1]], row[columns[2]])
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", line, err)
		}
		if len(trace) > 0 && arrival.At < trace[len(trace)-1].At {
			return nil, fmt.Errorf("line %d: arrives before the line above it", line)
		}
		trace = append(trace, arrival)
	}
	if len(trace) == 0 {
		return nil, errors.New("no requests in it")
	}
	return trace, nil
}

func traceColumns(header []string) (columns [3]int, err error) {
	for i, name := range []string{"arrival_seconds", "input_tokens", "output_tokens"} {
		columns[i] = slices.Index(header, name)
		if columns[i] < 0 {
			return columns, fmt.Errorf("header %q has no column %s", header, name)
		}
	}
	return columns, nil
}

func parseArrival(at, input, output string) (Arrival, error) {
	seconds, err := strconv.ParseFloat(at, 64)
	if err != nil || !(seconds >= 0) || seconds > 1e9 {
		return Arrival{}, fmt.Errorf("arrival_seconds %q: must be 0 to 1e9", at)
	}
	in, err := parseTokens(input)
	if err != nil {
		return Arrival{}, fmt.Errorf("input_tokens %w", err)
	}
	out, err := parseTokens(output)
	if err != nil {
		return Arrival{}, fmt.Errorf("output_tokens %w", err)
	}
	micros := math.Round(seconds * 1e6)
	return Arrival{At: time.Duration(micros) * time.Microsecond, InputTokens: in, OutputTokens: out}, nil
}

func parseTokens(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > maxPrompt {
		return 0, fmt.Errorf("%q: must be 0 to %d", s, maxPrompt)
	}
	return max(n, 1), nil
}

// Until is the part of the trace that arrives before limit, in the trace's own time.
func (t Trace) Until(limit time.Duration) Trace {
	end, _ := slices.BinarySearchFunc(t, limit, func(a Arrival, at time.Duration) int { return int(a.At - at) })
	return t[:end]
}

func (t Trace) longestInput() int {
	longest := 0
	for _, arrival := range t {
		longest = max(longest, arrival.InputTokens)
	}
	return longest
}
