package platform

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// A Policy is how sources are asked.
type Policy struct {
	// Attempt is how long a source may take to answer once.
	Attempt time.Duration
	// First is how long to wait after the first temporary error; each time twice
	// as long, up to Longest.
	First, Longest time.Duration
	// Jitter returns numbers from 0 to 1. Waiting is shortened by up to a half, so
	// that machines that were started together do not ask together.
	Jitter func() float64
	// Validate says what is wrong with a configuration.
	Validate func([]byte) error
	// Progress is told of every answer.
	Progress func(Event)
}

// DefaultPolicy returns a Policy that accepts everything and tells nobody.
func DefaultPolicy() Policy {
	return Policy{
		Attempt: 30 * time.Second, First: time.Second, Longest: 20 * time.Second,
		Jitter:   func() float64 { return 0 },
		Validate: func([]byte) error { return nil },
		Progress: func(Event) {},
	}
}

// An Event is an answer of a source.
type Event struct {
	Source string
	Err    error         // nil: it has what it was asked for
	Again  time.Duration // the source is asked again after that; 0 if it is not
}

func (e Event) String() string {
	switch {
	case e.Err == nil:
		return e.Source + ": found"
	case e.Again > 0:
		return fmt.Sprintf("%s: %v; asking again in %v", e.Source, e.Err, e.Again.Round(100*time.Millisecond))
	}
	return fmt.Sprintf("%s: %v", e.Source, e.Err)
}

// A Failure is a source that has, or may have, a configuration that cannot be used.
type Failure struct {
	Source string
	Err    error
}

func (f Failure) Error() string { return f.Source + ": " + f.Err.Error() }
func (f Failure) Unwrap() error { return f.Err }

// A Result is a configuration that was found.
type Result struct {
	Data   []byte
	Source string // name of the one that had it
	// Failed are sources that come before it, and failed. A result with some is
	// better than nothing, but nothing to save on STATE: on the next start they may
	// have what is meant.
	Failed []Failure
}

// An AcquireError is that no source has a configuration which can be used, and at
// least one failed.
type AcquireError struct{ Failed []Failure }

func (e *AcquireError) Error() string {
	var b strings.Builder
	b.WriteString("no machine configuration can be used:")
	for _, f := range e.Failed {
		b.WriteString("\n  " + f.Error())
	}
	return b.String()
}

// Acquire asks the sources in their order and returns the first configuration that
// is valid. The error is ErrNone if all say that they have none, an *AcquireError
// if some failed, and ctx's if that is done.
func (p Policy) Acquire(ctx context.Context, sources []Source) (*Result, error) {
	var failed []Failure
	for _, s := range sources {
		data, err := p.ask(ctx, s)
		switch {
		case err == nil:
			return &Result{Data: data, Source: s.Name, Failed: failed}, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case !errors.Is(err, ErrNone):
			failed = append(failed, Failure{s.Name, err})
		}
	}
	if len(failed) > 0 {
		return nil, &AcquireError{failed}
	}
	return nil, ErrNone
}

// ask asks one source until it answers, or patience is at an end.
func (p Policy) ask(ctx context.Context, s Source) (data []byte, err error) {
	err = p.retry(ctx, s.Name, s.Patience, func(ctx context.Context) (err error) {
		data, err = p.configuration(ctx, s)
		return err
	})
	return data, err
}

// Metadata asks a platform about the machine, and again after temporary errors.
func (p Policy) Metadata(ctx context.Context, from *Platform) (m *Metadata, err error) {
	err = p.retry(ctx, from.Name+" metadata", patienceNetwork, func(ctx context.Context) (err error) {
		m, err = from.Metadata(ctx)
		return err
	})
	return m, err
}

// Ready tells a platform that the machine is up, and again after temporary errors.
func (p Policy) Ready(ctx context.Context, to *Platform) error {
	if to.Ready == nil {
		return nil
	}
	return p.retry(ctx, to.Name+" report", patienceNetwork, to.Ready)
}

// retry calls f, and again as long as its error is temporary and patience lasts.
func (p Policy) retry(ctx context.Context, name string, patience time.Duration, f func(context.Context) error) error {
	end := time.Now().Add(patience)
	for wait := p.First; ; wait = min(2*wait, p.Longest) {
		err := p.once(ctx, f)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		again := p.again(err, wait)
		if again == 0 || time.Now().Add(again).After(end) {
			p.Progress(Event{Source: name, Err: err})
			return err
		}
		p.Progress(Event{name, err, again})
		if err := sleep(ctx, again); err != nil {
			return err
		}
	}
}

func (p Policy) once(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, p.Attempt)
	defer cancel()
	return f(ctx)
}

// again returns how long to wait after err, or 0 if waiting is no use.
func (p Policy) again(err error, wait time.Duration) time.Duration {
	var t *TemporaryError
	switch {
	case errors.As(err, &t):
		return max(wait-time.Duration(p.Jitter()*float64(wait)/2), t.After)
	case errors.Is(err, context.DeadlineExceeded):
		return wait
	}
	return 0
}

// configuration asks one source once.
func (p Policy) configuration(ctx context.Context, s Source) ([]byte, error) {
	data, err := s.Configuration(ctx)
	if err != nil {
		return nil, err
	}
	if data, err = Decode(data); err != nil {
		return nil, err
	}
	if err := p.Validate(data); err != nil {
		return nil, fmt.Errorf("the machine configuration is not valid: %w", err)
	}
	return data, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
