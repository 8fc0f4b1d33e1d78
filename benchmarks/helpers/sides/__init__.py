"""The sides of a comparison: bare parts (`bare`), a rollout actor without a pool (`generating`), whole steps of this
package (`session_steps`), and the process that runs TRL's (`trl_worker`)."""
