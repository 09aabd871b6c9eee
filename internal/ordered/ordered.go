// Package ordered does work in parallel whose results are wanted in order: pieces
// are cut one after the other, worked on in any order by several goroutines, and
// finished in the order in which they were cut. How many pieces there are at a
// time, and with it the memory they take, is bounded; what comes out does not
// depend on the number of processors.
package ordered

import (
	"context"

	"golang.org/x/sync/errgroup"
)

// Pipeline is work on pieces of type T, which are used again and again.
type Pipeline[T any] struct {
	Workers int // goroutines that work
	Pieces  int // that there are at a time, more than Workers

	New func() T // makes a piece

	// Cut calls next for each piece, to be set up by what it is given.
	Cut func(next func(set func(T)) error) error

	// Worker returns a function that works on pieces, for one goroutine.
	Worker func() (func(T) error, error)

	// Finish is called for each piece, in order.
	Finish func(T) error
}

// piece is a piece on its way.
type piece[T any] struct {
	value T
	done  chan struct{}
}

// Run does all the work. It returns the first error of any of the functions.
func (p Pipeline[T]) Run(ctx context.Context) error {
	free := make(chan T, p.Pieces)
	for range p.Pieces {
		free <- p.New()
	}
	todo, order := make(chan piece[T]), make(chan piece[T], p.Pieces)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(todo)
		defer close(order)
		return p.Cut(func(set func(T)) error {
			var value T
			select {
			case value = <-free:
			case <-ctx.Done():
				return ctx.Err()
			}
			set(value)
			x := piece[T]{value, make(chan struct{})}
			order <- x // has room for every piece there is
			select {
			case todo <- x:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	for range p.Workers {
		group.Go(func() error {
			work, err := p.Worker()
			if err != nil {
				return err
			}
			for x := range todo {
				if err := work(x.value); err != nil {
					return err
				}
				close(x.done)
			}
			return nil
		})
	}
	group.Go(func() error {
		for x := range order {
			select {
			case <-x.done:
			case <-ctx.Done():
				return ctx.Err()
			}
			if err := p.Finish(x.value); err != nil {
				return err
			}
			free <- x.value
		}
		return nil
	})
	return group.Wait()
}
