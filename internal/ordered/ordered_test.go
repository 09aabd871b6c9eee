package ordered

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"
)

type job struct{ n, square int }

// squares returns a pipeline of n numbers, and what comes out of it.
func squares(n int, made *atomic.Int64, out *[]int) Pipeline[*job] {
	return Pipeline[*job]{
		Workers: 4, Pieces: 6,
		New: func() *job { made.Add(1); return &job{} },
		Cut: func(next func(func(*job)) error) error {
			for i := range n {
				if err := next(func(j *job) { j.n = i }); err != nil {
					return err
				}
			}
			return nil
		},
		Worker: func() (func(*job) error, error) {
			return func(j *job) error {
				time.Sleep(time.Duration(rand.IntN(200)) * time.Microsecond)
				j.square = j.n * j.n
				return nil
			}, nil
		},
		Finish: func(j *job) error { *out = append(*out, j.square); return nil },
	}
}

func TestRun(t *testing.T) {
	var made atomic.Int64
	var out []int
	if err := squares(500, &made, &out).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if made.Load() != 6 {
		t.Errorf("%d pieces were made, want 6", made.Load())
	}
	if len(out) != 500 {
		t.Fatalf("%d came out", len(out))
	}
	for i, n := range out {
		if n != i*i {
			t.Fatalf("%d is at %d", n, i)
		}
	}
}

// Whatever fails ends all of it, with that error.
func TestErrors(t *testing.T) {
	broken := errors.New("broken")
	for name, change := range map[string]func(*Pipeline[*job]){
		"cut":    func(p *Pipeline[*job]) { p.Cut = func(func(func(*job)) error) error { return broken } },
		"worker": func(p *Pipeline[*job]) { p.Worker = func() (func(*job) error, error) { return nil, broken } },
		"work": func(p *Pipeline[*job]) {
			p.Worker = func() (func(*job) error, error) {
				return func(j *job) error {
					if j.n == 77 {
						return broken
					}
					return nil
				}, nil
			}
		},
		"finish": func(p *Pipeline[*job]) { p.Finish = func(*job) error { return broken } },
	} {
		var made atomic.Int64
		var out []int
		p := squares(500, &made, &out)
		change(&p)
		if err := p.Run(t.Context()); !errors.Is(err, broken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var made atomic.Int64
	var out []int
	if err := squares(500, &made, &out).Run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
